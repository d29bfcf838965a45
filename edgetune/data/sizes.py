"""Facts of the data room for whoever plans or exports: sizes of files, what is done with images. Nothing heavy."""

from __future__ import annotations

from typing import Literal

FEATURE_HEADER_BYTES = 512
# What evaluation does with an image (`edgetune.data.preprocess`), for programs that have none of this code.
IN_WORDS = (
    "upright by its EXIF orientation; RGB, transparency over white; shorter side resized to image_size, bicubic;"
    " centre square; (value / 255 - mean) / std; NCHW float32"
)


def feature_bytes(count: int, shape: tuple[int, int], precision: Literal["fp16", "int8"]) -> int:
    """Size of a file of `count` records of `shape` (tokens, width): see `edgetune.data.features`."""
    tokens, width = shape
    values = 2 * tokens * width if precision == "fp16" else tokens * (width + 4)
    return FEATURE_HEADER_BYTES + count * (4 + values)
