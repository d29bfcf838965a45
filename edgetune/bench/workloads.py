"""The workloads: which model, which images, which settings every method shares.

W1 to W4 are the project's own, under their names so that two people's figures are of the same thing; anything else is
`--data` and `--model`. W2 and W3 measure time and memory: random weights and made-up images do, and both are written
once, by `edgetune.bench.synthetic`, from a seed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec as find_package
from pathlib import Path
from typing import NamedTuple

from edgetune.bench.records import MADE_UP, Settings
from edgetune.data.folder import Sample, scan
from edgetune.data.samples import unpack
from edgetune.errors import InputError, MissingDependencyError, StorageError
from edgetune.files import sha256
from edgetune.model.registry import BUNDLED_MODEL, find_spec
from edgetune.plan.methods import DEFAULT_EPOCHS, REFERENCE_BATCH
from edgetune.processes import module_command

MADE_CLASSES, MADE_VAL_IMAGES = 4, 16


class Workload(NamedTuple):
    """A workload as it stands before the user's options. `made_images`: training images to make up; 0 asks for data."""

    model: str
    image_size: int | None
    batch_size: int
    summary: str
    made_images: int = 0
    needs_weights: bool = False
    sample: str | None = None  # bundled images that stand in for --data
    flip: bool = True
    epochs: int = 3
    threads: int = 2
    evaluate_steps: int = 20  # 0 where accuracy means nothing


WORKLOADS = {
    "w1": Workload("vit_small_patch14_dinov2", 98, 32, "ViT-S/14 on photos at 98 px, batch 32", needs_weights=True),
    "w2": Workload("vit_tiny_patch16_224", 224, 8, "ViT-Ti/16 at 224 px, batch 8", made_images=160, evaluate_steps=0),
    "w3": Workload("vit_base_patch16_224", 224, 4, "ViT-B/16 at 224 px, batch 4", made_images=64, evaluate_steps=0),
    # flipped digits are other digits
    "w4": Workload(BUNDLED_MODEL, 64, 32, "the bundled ViT at 64 px, batch 32", sample="digits", flip=False),
}


class Job(NamedTuple):
    """A workload made ready: settings for the record, and where its files are."""

    settings: Settings
    data: Path
    weights: Path | None


def choose(
    name: str | None, *, data: Path | None = None, model: str | None = None, weights: Path | None = None
) -> Workload:
    """The workload of a name, or one made of `data` and `model`.

    Raises:
        InputError: there is none of that name, something it needs is not given, or contradicts it.
    """
    if weights is not None and not weights.is_file():
        raise InputError(f"--weights {weights} is no file; check the path.")
    if name is None:
        if data is None or model is None:
            raise InputError("give --workload w1, w2, w3 or w4, or both --data and --model.")
        return Workload(model, None, REFERENCE_BATCH, "", epochs=DEFAULT_EPOCHS, threads=_usable_cores())
    if name not in WORKLOADS:
        known = ", ".join(f"{key} ({workload.summary})" for key, workload in WORKLOADS.items())
        raise InputError(f"--workload {name} is unknown; use one of {known}, or --data and --model.")
    chosen = WORKLOADS[name]
    if model is not None and model != chosen.model:
        raise InputError(f"--model {model} contradicts --workload {name}, which is {chosen.model}; drop one.")
    if chosen.made_images and (data or weights):
        raise InputError(f"--workload {name} makes its own images and weights; drop --data and --weights.")
    if chosen.needs_weights and (data is None or weights is None):
        raise InputError(f"--workload {name} needs --data and --weights; docs/artifacts.md says which.")
    return chosen


def prepare(
    out: Path,
    name: str | None,
    workload: Workload,
    *,
    data: Path | None = None,
    weights: Path | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    threads: int | None = None,
    augment: bool | None = None,
    flip: bool | None = None,
    seed: int = 0,
    evaluate_steps: int | None = None,
    power_w: float | None = None,
) -> Job:
    """Settings from a workload and the user's options, which win; images and weights that are to be made are made.

    Args:
        out: where what is made goes.
        name: of the workload.
        workload: from `choose`, with the same `data` and `weights`.
        data: an image folder.
        weights: a `.safetensors` file.
        image_size: side in pixels.
        batch_size: images per optimizer step.
        epochs: of every run.
        threads: of the arithmetic.
        augment: train on random crops.
        flip: mirror half of them.
        seed: of what is made, and of the first repetition.
        evaluate_steps: steps between the points of the accuracy's course; 0: none.
        power_w: what the machine draws, where no sensor says.

    Raises:
        InputError: something can't be used.
        MissingDependencyError: weights are to be made, and torch is not installed.
        StorageError: images or weights could not be made.
    """
    side = find_spec(workload.model).at(image_size or workload.image_size).image_size
    if data is not None:
        label = data.resolve().name
    elif workload.made_images:
        data, weights = out / "data", out / "weights.safetensors"
        label = f"{MADE_UP}{workload.made_images} images of {side} px, seed {seed}"
        if not (data.is_dir() and weights.is_file()):
            _make(workload, side, data, weights, seed)
    elif workload.sample:
        data, label = unpack(workload.sample, out / "data"), f"bundled: {workload.sample}"
    else:
        raise InputError("--data is missing: give an image folder.")
    folder = scan(data, seed)
    given = data if not workload.made_images else None
    augmented = augment is not False
    settings = Settings(
        workload=name,
        model=workload.model,
        weights=weights.name if weights else None,
        data=label,
        image_size=side,
        batch_size=min(batch_size or workload.batch_size, len(folder.train)),
        epochs=epochs or workload.epochs,
        threads=threads or min(workload.threads, _usable_cores()),
        seed=seed,
        augment=augmented,
        flip=augmented and (workload.flip if flip is None else flip),
        classes=len(folder.classes),
        train_images=len(folder.train),
        val_images=len(folder.val),
        evaluate_steps=workload.evaluate_steps if evaluate_steps is None else evaluate_steps,
        power_w=power_w,
        weights_digest=_digest_of_weights(weights) if weights and not workload.made_images else None,
        data_digest=_digest_of_images(given, [*folder.train, *folder.val]) if given else None,
    )
    return Job(settings, data.absolute(), weights.absolute() if weights else None)


def _make(workload: Workload, image_size: int, data: Path, weights: Path, seed: int) -> None:
    """Make images and weights in a process of their own: what that takes is gone before anything is measured."""
    if find_package("torch") is None:
        raise MissingDependencyError("torch", "torch", f"--workload with {workload.model}")
    order = [workload.model, image_size, MADE_CLASSES, workload.made_images, MADE_VAL_IMAGES, seed, data, weights]
    command = [*module_command("edgetune.bench.synthetic"), *map(str, order)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise StorageError(f"{data} and {weights} could not be made: {last}")


def _digest_of_images(data: Path, images: Sequence[Sample]) -> str:
    """Of their names and sizes: reading every image would take as long as training on it."""
    lines = sorted(f"{os.path.relpath(image.path, data)} {_size(image.path)}" for image in images)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:  # a link that leads nowhere, which `fit` names and leaves out
        return None


def _digest_of_weights(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise InputError(f"--weights {path} can't be read ({error.strerror}); check its permissions.") from None


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
