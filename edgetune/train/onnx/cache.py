"""The graphs of a plan: kept in a folder from an earlier run, or written there by a process of its own.

Writing graphs takes the onnx package, 12 MB of memory and a quarter of a second, none of which a training process needs
once they are there. The folder's name is a digest of all that decides what the graphs are.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from functools import cache
from pathlib import Path

import msgspec

from edgetune.__about__ import __version__
from edgetune.errors import InputError, MissingDependencyError
from edgetune.model.registry import find_spec
from edgetune.model.spec import ViTSpec
from edgetune.processes import module_command
from edgetune.schema import LoraPlan, Plan
from edgetune.train.onnx.runtime import Load

_WRITTEN = "written"  # the last file put into a folder


def build(spec: ViTSpec, optimizer: str, lora: LoraPlan | None) -> Load:
    """A function that writes graphs when they are asked for.

    Raises:
        MissingDependencyError: the onnx package is not installed.
    """
    try:
        from edgetune.train.onnx.graphs import builders
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "onnx", "onnx", "writing training graphs") from None

    found = builders(spec, optimizer, lora.alpha / lora.rank if lora else None)

    @cache
    def load(name: str) -> bytes:
        content: bytes = found[name]().model(name).SerializeToString()
        return content

    return load


def graphs_of(plan: Plan) -> Load:
    """The graphs of a plan, from the user's cache, where they are put if they are not there yet.

    Where nothing can be kept, they are written in this process.
    """
    return graphs_for(_spec_of(plan), plan.optimizer, plan.lora)


def are_written(plan: Plan) -> bool:
    """Whether the user's cache has them."""
    return (_folder_of(_spec_of(plan), plan.optimizer, plan.lora) / _WRITTEN).exists()


def graphs_for(spec: ViTSpec, optimizer: str, lora: LoraPlan | None) -> Load:
    """See `graphs_of`."""
    folder = _folder_of(spec, optimizer, lora)
    if not (folder / _WRITTEN).exists():
        order = msgspec.json.encode({"spec": spec, "optimizer": optimizer, "lora": lora}).decode()
        command = [*module_command("edgetune.train.onnx.write"), str(folder), order]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not (folder / _WRITTEN).exists():
            return build(spec, optimizer, lora)
    return from_folder(folder)


def from_folder(folder: Path) -> Load:
    """The graphs in a folder, one file each."""

    def load(name: str) -> bytes:
        try:
            return (folder / f"{name}.onnx").read_bytes()
        except OSError as error:
            raise InputError(f"{folder / name}.onnx can't be read ({error.strerror}); delete {folder}.") from None

    return load


def cache_folder() -> Path:
    """Where graphs are kept between runs."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "edgetune" / "graphs"


def _spec_of(plan: Plan) -> ViTSpec:
    return find_spec(plan.model).at(plan.image_size, len(plan.data.classes))


def _folder_of(spec: ViTSpec, optimizer: str, lora: LoraPlan | None) -> Path:
    return cache_folder() / _key(spec, optimizer, lora)


def _key(spec: ViTSpec, optimizer: str, lora: LoraPlan | None) -> str:
    facts = msgspec.to_builtins(spec) | {"depth": 0, "name": "", "mean": 0, "std": 0, "hub_id": None}
    facts |= {"optimizer": optimizer, "lora": msgspec.to_builtins(lora), "edgetune": __version__}
    facts["sources"] = [(path.name, path.stat().st_mtime_ns) for path in _sources()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _sources() -> list[Path]:
    """The modules that decide what a graph is: a development version changes without a new number."""
    here = Path(__file__).parent
    model = here.parent.parent / "model"
    ours = [here / f"{name}.py" for name in ("graphs", "drawing", "edges", "moves")]
    theirs = [model / f"{name}.py" for name in ("block", "onnx_ops", "onnx_graph", "onnx_version", "spec")]
    return [*ours, here.parents[1] / "optim" / "rules.py", *theirs]
