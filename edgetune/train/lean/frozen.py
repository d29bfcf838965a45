"""Blocks that never train, in little memory: in fp32, bf16 or 8 bits, or on disk and read when they are passed.

Weights are handed out in the type the arithmetic wants, those of half a block at a time: that is all the memory it
takes, and it is the same memory for every half.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from edgetune.model.block import Half, half_of
from edgetune.model.packing import Packed, pack
from edgetune.model.store import WeightsStore
from edgetune.train.halves import strip
from edgetune.train.lean.arena import Arena

Residence = Literal["fp32", "bf16", "int8", "disk"]


class FrozenBlocks:
    """Weights of the blocks below the lowest that may train.

    Args:
        store: the file they come from.
        blocks: which; their weights' names in the file begin with `blocks.<index>.`.
        residence: how they are kept; "disk" keeps none.
        compute: type of the weights handed out.
        device: where they are needed.
    """

    def __init__(
        self,
        store: WeightsStore,
        blocks: Iterable[int],
        residence: Residence,
        compute: torch.dtype,
        device: torch.device,
    ) -> None:
        self._store, self._compute = store, compute
        self._kept: dict[str, Tensor | Packed] = {}
        self._names: dict[tuple[int, Half], list[str]] = {}
        # slabs of their own: among the temporaries of packing, what stays would leave holes in malloc's heap
        self._memory, self._buffer = Arena(device), Arena(device)
        for index in blocks:
            at = f"blocks.{index}."
            self._names[index, "attention"], self._names[index, "mlp"] = [], []
            for name in store.names:
                if name.startswith(at):
                    self._names[index, half_of(name)].append(name)
                    if residence != "disk":
                        self._kept[name] = self._small(name, residence)
        self.free()

    def _small(self, name: str, residence: Residence) -> Tensor | Packed:
        shape = self._store.shape(name)
        self._buffer.reset()
        values = self._store.read(name, self._buffer.empty(shape, torch.float32))
        if residence == "int8" and len(shape) > 1:
            return pack(values, "int8", self._memory.empty)
        # vectors are few: they stay as exact as the arithmetic
        kind = torch.bfloat16 if residence == "bf16" and len(shape) > 1 else torch.float32
        return self._memory.empty(shape, kind).copy_(values)

    def half(self, index: int, half: Half) -> Mapping[str, Tensor]:
        """Weights of half a block by their names within the block; matrices in the arithmetic's type.

        They may be written over when the next half is asked for.
        """
        self._buffer.reset()
        found = {name: self._ready(name) for name in self._names[index, half]}
        return strip(found, f"blocks.{index}.")

    def free(self) -> None:
        """Give back the memory of the half handed out last."""
        self._buffer.free()

    def _ready(self, name: str) -> Tensor:
        kept = self._kept.get(name)
        if isinstance(kept, Tensor) and (kept.ndim == 1 or kept.dtype == self._compute):
            return kept
        shape = self._store.shape(name) if kept is None else kept.shape
        values = self._buffer.empty(shape, self._compute if len(shape) > 1 else torch.float32)
        if isinstance(kept, Packed):
            return kept.unpack_into(values)
        if kept is not None:
            return values.copy_(kept)
        return self._store.read(name, values)
