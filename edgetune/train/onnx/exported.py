"""A folder of training graphs: what `edgetune export --format train-onnx` writes and `edgetune fit --graphs` reads.

    manifest.json            the plan, the classes, the preprocessing, every graph's inputs and outputs, all checksums
    state.safetensors        the weights to begin with, under timm's names
    evaluate.onnx            images and weights to logits
    graphs/NAME.onnx         the training step, half a block at a time (`edgetune.train.onnx.graphs`)

Nothing of it is used that is not what the manifest says.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import msgspec

from edgetune.data.folder import scan
from edgetune.errors import InputError
from edgetune.model.onnx_version import OLDEST_ONNXRUNTIME, OPSET
from edgetune.schema import Plan, Record, load

MANIFEST, STATE, EVALUATE, GRAPHS = "manifest.json", "state.safetensors", "evaluate.onnx", "graphs"


class Tensor(Record, frozen=True):
    """An input or output of a graph; names stand for sides that are open."""

    name: str
    type: str
    shape: list[int | str]


class GraphFile(Record, frozen=True):
    """A graph."""

    file: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class Manifest(Record, frozen=True, tag_field="schema", tag="edgetune/training-graphs/1"):
    """What a folder of training graphs is; answers `edgetune export --format train-onnx`."""

    model: str
    plan: Plan
    classes: list[str]
    preprocessing: dict[str, Any]
    opset: int
    onnxruntime: str  # the oldest that runs them
    graphs: dict[str, GraphFile]
    checksums: dict[str, str]  # SHA-256 by file
    edgetune_version: str
    created: str


def open_folder(folder: Path) -> Manifest:
    """The manifest of a folder whose every file is what the manifest says.

    Raises:
        InputError: the folder is incomplete or was altered, or this onnxruntime can't run it.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"--graphs {folder} has no {MANIFEST}; give a folder of `edgetune export --format train-onnx`."
        )
    manifest = load(folder / MANIFEST, Manifest)
    if manifest.opset != OPSET:
        raise InputError(f"--graphs {folder} is written in opset {manifest.opset}, not {OPSET}; export it anew.")
    _refuse_runtime(folder, manifest)
    for name, checksum in manifest.checksums.items():
        if not (folder / name).is_file():
            raise InputError(f"--graphs {folder} lacks {name}; export it anew.")
        if sha256(folder / name) != checksum:
            raise InputError(f"--graphs {folder}: {name} is not what {MANIFEST} says; export it anew.")
    wanted = {STATE, EVALUATE, *(graph.file for graph in manifest.graphs.values())}
    if wanted - set(manifest.checksums):
        missing = sorted(wanted - set(manifest.checksums))[0]
        raise InputError(f"--graphs {folder}: {MANIFEST} has no checksum of {missing}; export it anew.")
    return manifest


def plan_of(folder: Path, data: str | None, plan: Path | None) -> Plan:
    """The plan of a folder of training graphs, for the images in `data`.

    Args:
        folder: of the graphs.
        data: the image folder.
        plan: a plan that must be the graphs' own; None: theirs is taken.

    Raises:
        InputError: the graphs can't be used, or are for another plan or other classes.
    """
    manifest = open_folder(folder)
    if data is None:
        raise InputError("DATA is missing: give the image folder as the first argument.")
    made = manifest.plan
    if plan is not None:
        given = load(plan, Plan)
        changed = [name for name in _DECIDING if getattr(given, name) != getattr(made, name)]
        if changed:
            raise InputError(f"--graphs {folder} were made for another plan than {plan} ({changed[0]}); export anew.")
        made = given
    found = scan(Path(data), made.seed)
    if list(found.classes) != manifest.classes:
        raise InputError(f"{data} has other classes than the graphs in {folder} were made for; export anew.")
    facts = msgspec.structs.replace(made.data, path=str(Path(data).absolute()))
    return msgspec.structs.replace(made, data=facts, weights=str((folder / STATE).absolute()))


_DECIDING = (
    "model",
    "image_size",
    "engine",
    "optimizer",
    "lora",
    "blocks",
    "k",
    "embeddings_trainable",
    "alast",
    "seed",
)


def copy_graphs(folder: Path, target: Path) -> None:
    """Put the graphs of an export into a run folder, so that it can be gone on with when the export is gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / GRAPHS, target, dirs_exist_ok=True)


def sha256(path: Path) -> str:
    """Digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _refuse_runtime(folder: Path, manifest: Manifest) -> None:
    """See that the installed onnxruntime is new enough."""
    from importlib import metadata

    try:
        installed = metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return  # whoever needs it says so
    if _version(installed) < max(_version(manifest.onnxruntime), OLDEST_ONNXRUNTIME):
        raise InputError(
            f"--graphs {folder} need onnxruntime {manifest.onnxruntime}, this is {installed}; install a newer one."
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
