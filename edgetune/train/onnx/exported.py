"""A folder of training graphs: what `edgetune export --format train-onnx` writes and `edgetune fit --graphs` reads.

    manifest.json            the plan, the classes, the preprocessing, every graph's inputs and outputs, all checksums
    state.safetensors        the weights to begin with, under timm's names
    evaluate.onnx            images and weights to logits
    graphs/NAME.onnx         the training step, half a block at a time (`edgetune.train.onnx.graphs`)

Nothing of it is used that is not what the manifest says. A run takes graphs and manifest into its own folder, and holds
the one to the other whenever it goes on.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from edgetune.data.folder import ImageFolder, scan
from edgetune.device.memory import read_memory
from edgetune.device.system import System
from edgetune.errors import InputError
from edgetune.files import sha256, storage_errors, write_atomically
from edgetune.model.onnx_version import INTERFACE, OLDEST_ONNXRUNTIME, OPSET, version_of
from edgetune.plan.cache import disk_room, planned_cache
from edgetune.plan.engines import refuse_levers
from edgetune.plan.job import job_of, levers_of
from edgetune.plan.machine import memory_cap, usable_cores
from edgetune.schema import FeatureCachePlan, Plan, Record, load, save
from edgetune.units import format_size

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
    interface: int = 0  # of the graphs (`edgetune.model.onnx_version`)


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
    if manifest.interface != INTERFACE:
        raise InputError(
            f"--graphs {folder} are of edgetune {manifest.edgetune_version}, whose graphs take other inputs; export"
            " them anew."
        )
    _refuse_runtime(folder, manifest)
    _compare(folder, manifest, f"--graphs {folder}", "export it anew")
    found = {f"{GRAPHS}/{path.name}" for path in (folder / GRAPHS).glob("*.onnx")}
    wanted = {STATE, EVALUATE, *found, *(graph.file for graph in manifest.graphs.values())}
    if wanted - set(manifest.checksums):
        missing = sorted(wanted - set(manifest.checksums))[0]
        raise InputError(f"--graphs {folder}: {MANIFEST} has no checksum of {missing}; export it anew.")
    if "evaluate" not in manifest.graphs or "update" not in manifest.graphs:
        raise InputError(f"--graphs {folder}: {MANIFEST} does not list a training step; export it anew.")
    return manifest


def _compare(folder: Path, manifest: Manifest, where: str, remedy: str, within: str = "") -> None:
    """Hold files to their checksums: all of the manifest's, or those in one of its folders, which `folder` then is."""
    for name, checksum in manifest.checksums.items():
        if not name.startswith(within):
            continue
        path = folder / name.removeprefix(within)
        if not path.is_file():
            raise InputError(f"{where} lacks {path.name if within else name}; {remedy}.")
        if sha256(path) != checksum:
            raise InputError(f"{where}: {path.name if within else name} is not what {MANIFEST} says; {remedy}.")


def plan_of(folder: Path, data: str | None, plan: Path | None, system: System | None = None) -> Plan:
    """The plan of a folder of training graphs, for the images in `data`.

    They may be others than the graphs were exported beside, more or fewer, of the same classes: graphs are often made
    on another machine than the one that has the images.

    Args:
        folder: of the graphs.
        data: the image folder.
        plan: a plan that must be the graphs' own; None: theirs is taken.
        system: where this machine's memory is read; None: here.

    Raises:
        InputError: the graphs can't be used, or are for another plan or other classes; or features of so many images
            have no room on disk.
    """
    manifest = open_folder(folder)
    if data is None:
        raise InputError("DATA is missing: give the image folder as the first argument.")
    made, state = manifest.plan, str((folder / STATE).absolute())
    if plan is not None:
        given = load(plan, Plan)
        changed = [name for name in _DECIDING if getattr(given, name) != getattr(made, name)]
        if given.weights not in (made.weights, state):  # a run with these graphs has a plan with this state
            changed.append("weights")
        if changed:
            raise InputError(f"--graphs {folder} were made for another plan than {plan} ({changed[0]}); export anew.")
        refuse_levers(levers_of(given), "plan with --engine onnx")
        made = given
    if made.device != "cpu":
        raise InputError(f"--graphs {folder} are for cpu, {plan} is a plan for {made.device}; plan with --engine onnx.")
    found = scan(Path(data), made.seed)
    if list(found.classes) != manifest.classes:
        raise InputError(f"{data} has other classes than the graphs in {folder} were made for; export anew.")
    made = _for_machine(msgspec.structs.replace(made, engine="onnx", weights=state), system or System())
    return _for_images(made, found, data)


def _for_machine(plan: Plan, system: System) -> Plan:
    """The plan with no more threads and, unless --memory said, no more memory than there is here."""
    cores = usable_cores()
    plan = msgspec.structs.replace(plan, threads=min(plan.threads, cores or plan.threads))
    cap_bytes, source = memory_cap(None, read_memory(system))
    asked_for = plan.caps.memory_source == "--memory"
    if asked_for or cap_bytes is None or (plan.caps.memory_bytes or math.inf) <= cap_bytes:
        return plan
    caps = msgspec.structs.replace(plan.caps, memory_bytes=cap_bytes, memory_source=source)
    why = f"Memory is capped at {format_size(cap_bytes)} here ({source}), less than where the graphs were made."
    return msgspec.structs.replace(plan, caps=caps, why=[why, *plan.why])


def _for_images(plan: Plan, found: ImageFolder, data: str) -> Plan:
    """The plan for other images of the same classes: as many epochs, of other lengths."""
    before, counts = plan.data, {"train_images": len(found.train), "val_images": len(found.val)}
    now = msgspec.structs.replace(before, path=str(Path(data).absolute()), split=found.split, **counts)
    plan = msgspec.structs.replace(plan, data=now, calibrated=None)
    if (before.train_images, before.val_images) == (now.train_images, now.val_images):
        return plan
    steps, recipe = math.ceil(now.train_images / plan.batch_size), plan.recipe
    total = math.ceil(plan.total_steps * steps / plan.steps_per_epoch)
    warmup = min(total, math.ceil(recipe.warmup_steps * total / plan.total_steps))
    return msgspec.structs.replace(
        plan,
        steps_per_epoch=steps,
        total_steps=total,
        recipe=msgspec.structs.replace(recipe, warmup_steps=warmup),
        predicted=msgspec.structs.replace(plan.predicted, **dict.fromkeys(_OF_EPOCHS)),
        alternatives=[],
        why=[f"Graphs of a plan for {before.train_images} images train on {now.train_images}.", *plan.why],
        feature_cache=plan.feature_cache and _resized(plan.feature_cache, plan, data),
    )


def _resized(cache: FeatureCachePlan, plan: Plan, data: str) -> FeatureCachePlan:
    """The cache for as many images as the plan has now.

    Raises:
        InputError: they have no room.
    """
    train, val = plan.data.train_images, plan.data.val_images
    found = planned_cache(job_of(plan), train, val, evaluations=2 if cache.val_bytes else 1)
    assert found is not None  # the plan has one
    needed_bytes, room_bytes = found.train_bytes + found.val_bytes, disk_room(plan.caps.disk_bytes)
    if needed_bytes > room_bytes:
        raise InputError(
            f"cached features of the images in {data} would take {format_size(needed_bytes)} of disk and may"
            f" take {format_size(room_bytes)}; raise --disk in a new plan, and export that."
        )
    return found


_OF_EPOCHS = ("epoch_s", "total_s", "epoch_energy_j", "total_energy_j", "first_epoch_s")
_DECIDING = (
    "model",
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
    """Put the graphs of an export into a run folder, so that it can be gone on with when the export is gone.

    Raises:
        InputError: the export is incomplete or was altered.
        StorageError: there is no room for them.
    """
    manifest = open_folder(folder)
    with storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for name in manifest.checksums:
            if name.startswith(f"{GRAPHS}/"):
                write_atomically(target / Path(name).name, (folder / name).read_bytes())
        save(manifest, target / MANIFEST)


def check_copy(folder: Path) -> None:
    """See that the graphs in a run folder are those that `copy_graphs` put there.

    Raises:
        InputError: they are not what they were then, or of another edgetune.
    """
    where, remedy = str(folder), "go on with --engine torch, or begin the run anew"
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{where} has no {MANIFEST}; {remedy}.")
    manifest = load(folder / MANIFEST, Manifest)
    if manifest.interface != INTERFACE:
        raise InputError(f"{where} holds graphs of edgetune {manifest.edgetune_version}, which differ; {remedy}.")
    _compare(folder, manifest, where, remedy, within=f"{GRAPHS}/")


def _refuse_runtime(folder: Path, manifest: Manifest) -> None:
    """See that the installed onnxruntime is new enough, without importing it: the engine looks at what it imports."""
    from importlib import metadata

    try:
        installed = metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return
    needed = max(version_of(manifest.onnxruntime), OLDEST_ONNXRUNTIME)
    if version_of(installed) < needed:
        text = ".".join(map(str, needed))
        raise InputError(f"--graphs {folder} need onnxruntime {text}, this is {installed}; install a newer one.")
