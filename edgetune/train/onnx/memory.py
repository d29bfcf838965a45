"""Memory of a step, taken once and written over by the next: what waits for the backward pass, and the stream.

What `edgetune.train.lean.arena` says of torch holds here too: left to malloc, saved arrays settle among temporaries.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_SLAB_BYTES = 64 << 20  # more than malloc takes from its heap: mapped apart, and memory only as it is written to
_ALIGNMENT = 64  # bytes; a cache line

Floats = NDArray[np.float32]


class Arena:
    """Arrays side by side, all of which `reset` takes back."""

    def __init__(self) -> None:
        self._slabs: list[NDArray[np.uint8]] = []
        self._slab = self._used = 0

    def reset(self) -> None:
        """Take everything back: what was handed out must not be used any more."""
        self._slab = self._used = 0

    def free(self) -> None:
        """Take everything back, and give the memory back until it is asked for again."""
        self._slabs.clear()
        self.reset()

    def empty(self, shape: tuple[int, ...]) -> Floats:
        """An array of any content."""
        size = math.prod(shape) * np.dtype(np.float32).itemsize
        if self._slab < len(self._slabs) and self._used and self._used + size > len(self._slabs[self._slab]):
            self._slab, self._used = self._slab + 1, 0
        if self._slab == len(self._slabs):
            self._slabs.append(_mapped(size))
        elif self._used + size > len(self._slabs[self._slab]):
            self._slabs[self._slab] = _mapped(size)  # this step has nothing in it, and it is too small
        start = self._used
        self._used = -(-(start + size) // _ALIGNMENT) * _ALIGNMENT
        return self._slabs[self._slab][start : start + size].view(np.float32).reshape(shape)


class Streams:
    """Two places for the residual stream, or its gradient: what is computed from one goes into the other."""

    def __init__(self) -> None:
        self._places: list[Floats] = [np.empty(0, np.float32)] * 2
        self._last = 0

    def next(self, shape: tuple[int, ...]) -> Floats:
        """The place that the latest stream does not lie in."""
        self._last = 1 - self._last
        size = math.prod(shape)
        if len(self._places[self._last]) < size:
            self._places[self._last] = np.empty(size, np.float32)
        return self._places[self._last][:size].reshape(shape)

    def free(self) -> None:
        """Give the memory back."""
        self._places = [np.empty(0, np.float32)] * 2


def _mapped(size: int) -> NDArray[np.uint8]:
    return np.empty(max(_SLAB_BYTES, size), np.uint8)
