"""Sizes of the data room's files, for whoever plans them. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

FEATURE_HEADER_BYTES = 512


def feature_bytes(count: int, shape: tuple[int, int], precision: Literal["fp16", "int8"]) -> int:
    """Size of a file of `count` records of `shape` (tokens, width): see `edgetune.data.features`."""
    tokens, width = shape
    values = 2 * tokens * width if precision == "fp16" else tokens * (width + 4)
    return FEATURE_HEADER_BYTES + count * (4 + values)
