"""Fresh weights without torch: the numbers that torch's generators would draw on the CPU from the same seed.

A run then starts from the same classifier and the same adapters whichever engine trains it. torch draws from a Mersenne
Twister, 24 bits for a number in [0, 1), and makes normal numbers of sixteen of those at a time (Box and Muller).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_AT_A_TIME = 16


class Draws:
    """A stream of numbers.

    Args:
        seed: of which, like torch's, the lower 32 bits count.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.MT19937()
        self._bits._legacy_seeding(seed & 0xFFFFFFFF)  # the seeding of the reference implementation

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> NDArray[np.float32]:
        """Numbers in [low, high), as `Tensor.uniform_` would draw them."""
        raw = self._bits.random_raw(math.prod(shape)) & ((1 << 24) - 1)
        values = raw.astype(np.float32) * np.float32(2.0**-24)
        found: NDArray[np.float32] = values * np.float32(high - low) + np.float32(low)
        return found.reshape(shape)

    def normal(self, shape: tuple[int, ...], deviation: float) -> NDArray[np.float32]:
        """Normal numbers around 0, as `Tensor.normal_` would draw 16 of them or more."""
        count = math.prod(shape)
        if count < _AT_A_TIME:
            raise ValueError(f"{count} numbers are fewer than {_AT_A_TIME}, which torch draws in another way")
        values = self.uniform((count,))
        whole = count // _AT_A_TIME * _AT_A_TIME
        values[:whole] = _box_muller(values[:whole])
        if whole < count:  # the last sixteen are drawn anew
            values[-_AT_A_TIME:] = _box_muller(self.uniform((_AT_A_TIME,)))
        values *= np.float32(deviation)
        return values.reshape(shape)


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    pairs = uniform.reshape(-1, 2, _AT_A_TIME // 2)
    radius = np.sqrt(-2 * np.log(1 - pairs[:, 0]))
    angle = np.float32(2 * math.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)


def lora_factor(rank: int, in_features: int, draws: Draws) -> NDArray[np.float32]:
    """A fresh A of an adapter, (rank, in), as `edgetune.model.lora.draw_factor`: uniform within ± 1 / √in."""
    bound = math.sqrt(3) * math.sqrt(2 / (1 + 5)) / math.sqrt(in_features)
    return draws.uniform((rank, in_features), -bound, bound)
