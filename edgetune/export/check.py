"""Is the exported model the same model? Its answers on real images beside those known to be right."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetune.data.decode import UnreadableImageError
from edgetune.data.folder import scan
from edgetune.data.preprocess import normalise, read
from edgetune.data.samples import unpack
from edgetune.errors import EdgetuneError, InputError
from edgetune.model.checkpoint import Checkpoint

_IMAGES = 16


class Images(NamedTuple):
    """Images as the model takes them, (B, 3, S, S), and where they are from."""

    values: NDArray[np.float32]
    source: str


class Comparison(NamedTuple):
    """How far two models are apart on the same images."""

    max_abs_difference: float
    largest_logit: float
    relative_difference: float  # to the spread of the logits over the classes
    same_answer: float  # share of images, 0 to 1


def real_images(checkpoint: Checkpoint, paths: Sequence[Path] | None = None) -> Images:
    """Images to compare on: those given, else validation images of the run's own data, else the bundled digits.

    Raises:
        InputError: an image given can't be read.
    """
    if paths:
        return Images(_read(checkpoint, paths), "those given")
    if checkpoint.plan is not None:
        try:
            folder = scan(checkpoint.plan.data.path, checkpoint.plan.seed)
            found = [Path(sample.path) for sample in folder.val]
            return Images(_read(checkpoint, _spread(found)), checkpoint.plan.data.path)
        except EdgetuneError:
            pass  # the data may have moved since, or never have been on this machine
    with tempfile.TemporaryDirectory() as scratch:
        digits = scan(unpack("digits", Path(scratch) / "digits"))
        return Images(_read(checkpoint, _spread([Path(sample.path) for sample in digits.val])), "the bundled digits")


def compare(
    images: Images, right_logits: Callable[[Any], Any], other_logits: Callable[[NDArray[np.float32]], Any]
) -> Comparison:
    """Run both models on all the images at once and on the first alone, since the batch size is free."""
    expected: NDArray[np.float32] = np.asarray(right_logits(images.values))
    largest, difference = float(np.abs(expected).max()), 0.0
    for count in (1, len(images.values)):
        got = np.asarray(other_logits(images.values[:count]))
        if got.shape != expected[:count].shape or not np.isfinite(got).all():
            return Comparison(float("inf"), largest, float("inf"), 0.0)
        difference = max(difference, float(np.abs(got - expected[:count]).max()))
    spread = float(expected.std(1).mean())
    same = float((got.argmax(1) == expected.argmax(1)).mean())
    return Comparison(difference, largest, float(np.abs(got - expected).mean()) / max(spread, 1e-12), same)


def _spread(paths: Sequence[Path]) -> list[Path]:
    """A few of many, evenly: files of one class stand together."""
    return [paths[index * len(paths) // _IMAGES] for index in range(min(_IMAGES, len(paths)))]


def _read(checkpoint: Checkpoint, paths: Sequence[Path]) -> NDArray[np.float32]:
    spec = checkpoint.spec
    try:
        pixels = [read(str(path), spec.image_size) for path in paths]
    except UnreadableImageError as error:
        raise InputError(f"an image to check the export on can't be read ({error}); leave it out.") from None
    return normalise(np.stack(pixels), spec.mean, spec.std)
