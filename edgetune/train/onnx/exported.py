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

from edgetune.data.folder import ImageFolder, scan
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

    They may be others than the graphs were exported beside, more or fewer, of the same classes: graphs are often made
    on another machine than the one that has the images.

    Args:
        folder: of the graphs.
        data: the image folder.
        plan: a plan that must be the graphs' own; None: theirs is taken.

    Raises:
        InputError: the graphs can't be used, or are for another plan or other classes; or features of so many images
            have no room on disk.
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
    made = msgspec.structs.replace(made, engine="onnx", weights=str((folder / STATE).absolute()))
    return _for_images(made, found, data)


def _for_images(plan: Plan, found: ImageFolder, data: str) -> Plan:
    """The plan for other images of the same classes; what was predicted of an epoch holds for as many alone."""
    before, counts = plan.data, {"train_images": len(found.train), "val_images": len(found.val)}
    now = msgspec.structs.replace(before, path=str(Path(data).absolute()), split=found.split, **counts)
    plan = msgspec.structs.replace(plan, data=now)
    if (before.train_images, before.val_images) == (now.train_images, now.val_images):
        return plan
    predicted = msgspec.structs.replace(plan.predicted, **dict.fromkeys(_OF_EPOCHS))
    plan = msgspec.structs.replace(plan, predicted=predicted)
    cache, most = plan.feature_cache, plan.caps.disk_bytes
    if cache is None:
        return plan
    sizes = {
        "train_bytes": cache.train_bytes * now.train_images // max(1, before.train_images),
        "val_bytes": cache.val_bytes * now.val_images // max(1, before.val_images),
    }
    if most is not None and sum(sizes.values()) > most:
        raise InputError(
            f"features of the images in {data} would take more than the plan's --disk; plan and export anew."
        )
    return msgspec.structs.replace(plan, feature_cache=msgspec.structs.replace(cache, **sizes))


_OF_EPOCHS = ("epoch_s", "total_s", "epoch_energy_j", "total_energy_j", "first_epoch_s")
_DECIDING = (
    "model",
    "weights",
    "image_size",
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
