"""Tensors in fewer bits: what is saved for the backward pass, and weights that do not train.

Eight and four bits are whole multiples of a scale that each group of neighbouring values has to itself, its largest
magnitude divided by the largest code; the groups lie along the last axis, so no row sees another row's outliers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "int8", "int4"]
GROUP = 64  # values that share a scale; the bill counts them too (`edgetune.plan.lean_bill.SCALE_GROUP`)
_PIECE = 1 << 18  # values packed at a time: few calls, and temporaries of a MiB each
_LARGEST = {"int8": 127, "int4": 7}


class Packed(NamedTuple):
    """A tensor in fewer bits; `scales` is None for bf16, which needs none."""

    codes: Tensor
    scales: Tensor | None
    shape: torch.Size
    precision: Precision

    def unpack(self) -> Tensor:
        """The tensor again, in fp32, as nearly as its bits tell."""
        if self.scales is None:
            return self.codes.float() if self.precision == "bf16" else self.codes
        codes = _halves(self.codes) if self.precision == "int4" else self.codes
        values = codes.to(self.scales.dtype)
        return values.mul_(self.scales).view(self.shape)

    def unpack_into(self, out: Tensor) -> Tensor:
        """The same in memory of the caller's, in its type, a piece at a time: nothing of the tensor's size is made."""
        if self.scales is None or self.precision == "int4":
            return out.copy_(self.unpack())
        rows = max(1, _PIECE // self.codes.shape[1])
        pieces = (tensor.split(rows) for tensor in (out.view(self.codes.shape), self.codes, self.scales))
        for some, code, scale in zip(*pieces, strict=True):
            some.copy_(code.to(scale.dtype).mul_(scale))
        return out

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)


class Empty(Protocol):
    """Where memory comes from: `Arena.empty`, or `torch.empty`."""

    def __call__(self, shape: tuple[int, ...] | torch.Size, /, *, dtype: torch.dtype) -> Tensor: ...


def pack(values: Tensor, precision: Precision, empty: Empty = torch.empty) -> Packed:
    """Put a tensor (..., n) in fewer bits; n should be a multiple of `GROUP`, else each row is one group.

    Args:
        values: the tensor.
        precision: fp32 keeps the tensor's own type and makes a copy.
        empty: gives the memory of the packed tensor.
    """
    shape = values.shape
    if precision in ("fp32", "bf16"):
        kind = values.dtype if precision == "fp32" else torch.bfloat16
        return Packed(empty(shape, dtype=kind).copy_(values), None, shape, precision)
    groups = values.reshape(-1, GROUP if shape[-1] % GROUP == 0 else shape[-1])
    largest = _LARGEST[precision]
    scales = empty((len(groups), 1), dtype=torch.float32 if groups.dtype == torch.bfloat16 else groups.dtype)
    width = groups.shape[1] // 2 if precision == "int4" else groups.shape[1]
    codes = empty((len(groups), width), dtype=torch.int8)
    rows = max(1, _PIECE // groups.shape[1])
    for some, scale, code in zip(groups.split(rows), scales.split(rows), codes.split(rows), strict=True):
        torch.mul(some.abs().amax(1, keepdim=True), 1 / largest, out=scale)
        scale.clamp_(min=torch.finfo(scale.dtype).tiny)  # a group of zeros
        scaled = (some / scale).round_()
        code.copy_(_pairs(scaled.to(torch.int8)) if precision == "int4" else scaled)
    return Packed(codes, scales, shape, precision)


def _pairs(codes: Tensor) -> Tensor:
    """Two codes of four bits, (R, G) to (R, G / 2), in one byte."""
    low, high = codes[:, 0::2], codes[:, 1::2]
    return (low & 15) | (high << 4)


def _halves(pairs: Tensor) -> Tensor:
    """Undo `_pairs`; shifting down again restores the sign."""
    low, high = (pairs << 4) >> 4, pairs >> 4
    return torch.stack([low, high], 2).view(len(pairs), -1)
