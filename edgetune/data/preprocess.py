"""Pixels to what a model takes: a square of `image_size` pixels, normalised, channels first.

Evaluation is timm's with a crop share of 1.0: the shorter side is resized to `image_size`, bicubic, and the centre
square is cut out. Training takes a random part of the image (area 35 to 100 %, aspect 3:4 to 4:3) and mirrors half of
them. Both are one `Image.resize` of a box, so that no intermediate image of a long panorama is ever made.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetune.data.decode import MOST_PIXELS, decode, decoding_bytes

Pixels = NDArray[np.uint8]
CROP_SCALE = (0.35, 1.0)  # share of the area; 0.08, usual from scratch, loses small subjects in short fine-tuning
CROP_RATIO = (3 / 4, 4 / 3)
_TRIES = 10
_ENOUGH = 2  # times the side leaves real pixels to a view of a third of the area, and to the filter of an evaluation


class View(NamedTuple):
    """Which part of an image is shown, in its pixels, and whether it is mirrored."""

    box: tuple[float, float, float, float]  # left, upper, right, lower
    mirrored: bool = False


def centre_view(width: int, height: int, image_size: int) -> View:
    """The centre square. Sides are rounded as torchvision's `Resize` and `CenterCrop` round them."""
    short = min(width, height)

    def span(side: int) -> tuple[float, float]:
        resized = image_size if side == short else int(image_size * side / short)
        start = round((resized - image_size) / 2)
        return start * side / resized, (start + image_size) * side / resized

    (left, right), (upper, lower) = span(width), span(height)
    return View((left, upper, min(right, width), min(lower, height)))


def random_view(width: int, height: int, rng: random.Random, *, flip: bool = True) -> View:
    """A random part of the image; what falls back to the centre after ten tries is an extreme aspect ratio."""
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    mirrored = rng.random() < 0.5 and flip
    for _ in range(_TRIES):
        area = width * height * (CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * rng.random())
        ratio = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1))
            return View((left, upper, left + w, upper + h), mirrored)
    widest, highest = min(width, height * CROP_RATIO[1]), min(height, width / CROP_RATIO[0])
    x, y = (width - widest) / 2, (height - highest) / 2
    return View((x, y, x + widest, y + highest), mirrored)


def render(image: Image.Image, view: View, image_size: int) -> Pixels:
    """A view as (image_size, image_size, 3) bytes."""
    pixels: Pixels = np.asarray(image.resize((image_size, image_size), Image.Resampling.BICUBIC, view.box))
    return pixels[:, ::-1] if view.mirrored else pixels


def read(
    path: str, image_size: int, rng: random.Random | None = None, *, flip: bool = True, most_pixels: int = MOST_PIXELS
) -> Pixels:
    """An image file as (image_size, image_size, 3) bytes: the centre, or with `rng` a random view.

    Raises:
        UnreadableImageError: see `decode`.
    """
    image = decode(path, _ENOUGH * image_size, most_pixels)
    if rng is None:
        view = centre_view(*image.size, image_size)
    else:
        view = random_view(*image.size, rng, flip=flip)
    return render(image, view, image_size)


def most_to_decode(paths: Sequence[str], image_size: int, looked_at: int = 64) -> tuple[int, str]:
    """The most memory that reading one of the files takes, and which; by the headers of some, spread evenly."""
    some = paths[:: max(1, -(-len(paths) // looked_at))]
    return max(((decoding_bytes(path, _ENOUGH * image_size), path) for path in some), default=(0, ""))


def normalise(pixels: Pixels, mean: Any, std: Any) -> NDArray[np.float32]:
    """Bytes (B, S, S, 3) to the model's input (B, 3, S, S), float32."""
    scale = (1 / (255 * np.asarray(std, np.float64))).astype(np.float32)
    shift = (np.asarray(mean, np.float64) / np.asarray(std, np.float64)).astype(np.float32)
    out = np.empty((pixels.shape[0], 3, *pixels.shape[1:3]), np.float32)
    for channel in range(3):  # channel by channel: no second float copy of the batch
        np.multiply(pixels[..., channel], scale[channel], out=out[:, channel], casting="unsafe")
        out[:, channel] -= shift[channel]
    return out
