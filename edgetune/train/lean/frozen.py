"""Blocks that never train, in little memory: in fp32, bf16 or 8 bits, or on disk and read when they are passed.

A block's weights are handed out in the type the arithmetic wants; what that takes is one block's worth at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from edgetune.model.store import WeightsStore
from edgetune.train.lean.packing import Packed, pack
from edgetune.train.lean.parameters import strip

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
        self._store, self._compute, self._device = store, compute, device
        self._kept: dict[int, dict[str, Tensor | Packed]] = {}
        self._names: dict[int, list[str]] = {}
        for index in blocks:
            at = f"blocks.{index}."
            self._names[index] = [name for name in store.names if name.startswith(at)]
            if residence != "disk":
                self._kept[index] = {name: self._small(store.read(name), residence) for name in self._names[index]}

    def _small(self, values: Tensor, residence: Residence) -> Tensor | Packed:
        if residence == "int8" and values.ndim > 1:
            packed = pack(values.float().to(self._device), "int8")
            return packed
        # vectors are few: they stay as exact as the arithmetic
        kind = torch.bfloat16 if residence == "bf16" and values.ndim > 1 else torch.float32
        return values.to(self._device, kind)

    def block(self, index: int) -> Mapping[str, Tensor]:
        """Weights of a block by their names within it; matrices in the arithmetic's type."""
        kept = self._kept.get(index)
        if kept is None:
            found = {name: self._read(name) for name in self._names[index]}
        else:
            found = {name: self._unpacked(value) for name, value in kept.items()}
        return strip(found, f"blocks.{index}.")

    def _read(self, name: str) -> Tensor:
        shape = self._store.shape(name)
        values = torch.empty(shape, dtype=self._compute if len(shape) > 1 else torch.float32)
        return self._store.read(name, values).to(self._device)

    def _unpacked(self, value: Tensor | Packed) -> Tensor:
        if isinstance(value, Packed):
            return value.unpack().to(self._compute)
        return value.to(self._compute) if value.ndim > 1 else value
