"""What a half of a block keeps for its backward pass, and in how many bits. See `edgetune.model.block.Saved`."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from edgetune.model.packing import Packed, Precision, pack
from edgetune.train.lean.arena import Arena

# A few numbers a token, on which the scale of everything else hangs.
_ALWAYS_EXACT = frozenset({"mean", "rstd", "lse"})


class Discarded:
    """Keeps nothing: for what lies below the lowest trained block."""

    def put(self, name: str, values: Tensor) -> None:
        """Let it go."""

    def take(self, name: str) -> Tensor:
        """Never called."""
        raise KeyError(name)


class Kept:
    """Keeps everything until it is taken, once.

    Args:
        precision: of the large tensors.
        arena: gives the memory.
        only: keep nothing but these; None keeps all.
    """

    def __init__(self, precision: Precision, arena: Arena, only: Collection[str] | None = None) -> None:
        self._precision, self._arena, self._only = precision, arena, only
        self._values: dict[str, Packed] = {}

    def put(self, name: str, values: Tensor) -> None:
        """Keep a tensor."""
        if self._only is not None and name not in self._only:
            return
        precision = "fp32" if name in _ALWAYS_EXACT else self._precision
        self._values[name] = pack(values, precision, self._arena.empty)

    def take(self, name: str) -> Tensor:
        """Give it back and forget it."""
        return self._values.pop(name).unpack()

    @property
    def nbytes(self) -> int:
        """Memory of what is kept."""
        return sum(values.nbytes for values in self._values.values())
