"""Update rules on flat groups, with as much state as memory allows.

    adamw, fp32       8 bytes a weight: both moments
    adamw, int8       2.03 bytes: first moment in 8 bits; second moment as 8 bits of its fourth root, rounded up, so
                      that no step becomes larger than it should be; both with a scale for every 256 values
    adamw, factored   1.02 bytes and a little: first moment in 8 bits; of a matrix's second moment the means of rows and
                      columns, whose outer product stands for it
    sgd               4 bytes: momentum
    sgd, no momentum  nothing

Long vectors are worked on in pieces that stay in cache, and that bound what an update needs besides.

D. Kingma and J. Ba, arXiv 1412.6980; I. Loshchilov and F. Hutter, arXiv 1711.05101; T. Dettmers et al., arXiv
2110.02861 (moments in 8 bits, block by block); N. Shazeer and M. Stern, arXiv 1804.04235 (factored moments).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from edgetune.optim.flat import Group
from edgetune.optim.fused import adam
from edgetune.optim.rules import BETAS, EPSILON, MOMENTUM, Stretch

Kind = Literal["adamw", "adam", "sgd", "sgd-plain"]
StatePrecision = Literal["fp32", "int8", "factored"]

_SCALE_GROUP = 256  # values of a moment that share a scale
_FACTORED_FIRST = "first_by_parameter"  # laid out otherwise than "first", parameter by parameter
_PIECE = 1 << 18  # values worked on at a time: a MiB, a multiple of the above


class GroupOptimizer:
    """The update of one group and its state, allocated with the first update.

    Args:
        group: what is updated.
        kind: AdamW, SGD with momentum 0.9, or SGD without.
        precision: of AdamW's state.
        weight_decay: of the matrices.
    """

    def __init__(self, group: Group, kind: Kind, precision: StatePrecision, weight_decay: float) -> None:
        self._group, self._kind, self._precision = group, kind, precision
        self._weight_decay = weight_decay
        # where each stretch's codes begin where parameters are scaled one by one: no two of them share a scale
        padded = (-(-part.size // _SCALE_GROUP) * _SCALE_GROUP for part in group.stretches)
        self._codes_starts = list(accumulate(padded, initial=0))
        self.state: dict[str, Tensor] = {}
        self.steps = 0

    @torch.no_grad()
    def step(self, gradient: Tensor, learning_rate: float) -> None:
        """Update the group by its flat gradient, which may be written over."""
        self.prepare()
        self.steps += 1
        group = self._group
        if self._kind == "adamw" and self._precision == "factored":
            self._factored(gradient, learning_rate)
            return
        decay = self._weight_decay
        if self._kind == "adamw" and self._precision == "int8":
            self._packed(gradient, learning_rate)
            return
        for part, part_decay in ((slice(group.decayed), decay), (slice(group.decayed, group.size), 0.0)):
            values, grads = group.values[part], gradient[part]
            if not len(values):
                continue
            if self._kind == "adamw" or self._kind == "adam":
                steps = torch.tensor(float(self.steps), device=values.device)
                first, second = self.state["first"][part], self.state["second"][part]
                adam(self._kind, [values], [grads], [first], [second], [steps], learning_rate, part_decay)
                continue
            grads.add_(values, alpha=part_decay)
            if self._kind == "sgd":
                momentum = self.state["momentum"][part]
                grads = momentum.mul_(MOMENTUM).add_(grads)
            values.add_(grads, alpha=-learning_rate)

    def prepare(self) -> None:
        """Allocate the state, if it isn't there yet."""
        if not self.state:
            device = self._group.values.device
            self.state = {name: torch.zeros(n, dtype=kind, device=device) for name, (n, kind) in self._layout().items()}

    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Take up a state and the number of updates that made it.

        Raises:
            ValueError: it is not this group's.
        """
        layout = self._layout()
        if state and {name: (value.numel(), value.dtype) for name, value in state.items()} != layout:
            raise ValueError(f"the optimizer's state of {self._group.name} is of another plan")
        self.prepare()
        for name, kept in self.state.items():  # copied: what a file hands out may be a view of it
            kept.copy_(state[name]) if state else kept.zero_()
        self.steps = steps

    # -- layout -------------------------------------------------------------------------------------------------------

    def _layout(self) -> dict[str, tuple[int, torch.dtype]]:
        size = self._group.size
        scales = -(-size // _SCALE_GROUP)
        if self._kind == "sgd-plain":
            return {}
        if self._kind == "sgd":
            return {"momentum": (size, torch.float32)}
        if self._precision == "fp32" or self._kind == "adam":
            return {"first": (size, torch.float32), "second": (size, torch.float32)}
        if self._precision == "factored":
            scales = self._codes_starts[-1] // _SCALE_GROUP
        codes = scales * _SCALE_GROUP  # the last group is filled up
        name = _FACTORED_FIRST if self._precision == "factored" else "first"
        layout = {name: (codes, torch.int8), f"{name}_scales": (scales, torch.float32)}
        if self._precision == "int8":
            return layout | {"second": (codes, torch.uint8), "second_scales": (scales, torch.float32)}
        vectors = size
        for part in self._group.matrices():
            rows, columns = part.shape[0], part.size // part.shape[0]
            layout |= {f"{part.name}/rows": (rows, torch.float32), f"{part.name}/columns": (columns, torch.float32)}
            vectors -= part.size
        return layout | {"vectors": (vectors, torch.float32)}

    # -- AdamW --------------------------------------------------------------------------------------------------------

    def _packed(self, gradient: Tensor, learning_rate: float) -> None:
        """AdamW (arXiv 1412.6980, algorithm 1, and 1711.05101) with both moments in 8 bits."""
        group = self._group
        group.values[: group.decayed].mul_(1 - learning_rate * self._weight_decay)
        # the corrections for moments that start at zero, drawn into the rate and epsilon
        second_correction = math.sqrt(1 - BETAS[1] ** self.steps)
        rate = learning_rate * second_correction / (1 - BETAS[0] ** self.steps)
        for start in range(0, group.size, _PIECE):
            grads = gradient[start : start + _PIECE]
            first = _Moment(self.state, "first", start, len(grads))
            second = _Moment(self.state, "second", start, len(grads))
            first.values.lerp_(grads, 1 - BETAS[0])
            square = second.values.square_().square_()
            root = square.mul_(BETAS[1]).addcmul_(grads, grads, value=1 - BETAS[1]).sqrt_()
            below = root + EPSILON * second_correction
            group.values[start : start + len(grads)].addcdiv_(first.values, below, value=-rate)
            first.keep()
            root.sqrt_()
            second.keep()

    def _factored(self, gradient: Tensor, learning_rate: float) -> None:
        """Second moments by rows and columns (arXiv 1804.04235, section 3); vectors keep theirs whole."""
        correction = 1 - BETAS[1] ** self.steps
        vector_start = 0
        for part, codes_start in zip(self._group.stretches, self._codes_starts, strict=False):  # the last is the end
            grads = gradient[part.start : part.start + part.size]
            if len(part.shape) > 1:
                matrix = grads.view(part.shape[0], -1)
                by_row, by_column = self._by_row_and_column(part.name, matrix, correction)
                # whole rows, and as many as end with a group of scales
                even = _SCALE_GROUP // math.gcd(matrix.shape[1], _SCALE_GROUP)
                height = even * max(1, _PIECE // (even * matrix.shape[1]))
                for top in range(0, len(matrix), height):
                    scaled = matrix[top : top + height].mul_(by_row[top : top + height, None]).mul_(by_column)
                    self._follow(part, codes_start, top * matrix.shape[1], scaled.view(-1), learning_rate)
            else:
                second = self.state["vectors"][vector_start : vector_start + part.size]
                vector_start += part.size
                second.mul_(BETAS[1]).addcmul_(grads, grads, value=1 - BETAS[1])
                grads.div_((second / correction).sqrt_().add_(EPSILON))
                for start in range(0, part.size, _PIECE):
                    self._follow(part, codes_start, start, grads[start : start + _PIECE], learning_rate)

    def _by_row_and_column(self, name: str, matrix: Tensor, correction: float) -> tuple[Tensor, Tensor]:
        """What a matrix's gradient is multiplied by; its second moments are brought up to date."""
        rows, columns = self.state[f"{name}/rows"], self.state[f"{name}/columns"]
        by_column = torch.zeros_like(columns)
        height = max(1, _PIECE // matrix.shape[1])
        for some, row in zip(matrix.split(height), rows.split(height), strict=True):
            squares = some.square()
            row.lerp_(squares.mean(1), 1 - BETAS[1])
            by_column += squares.sum(0)
        columns.lerp_(by_column.div_(len(matrix)), 1 - BETAS[1])
        # v = rows · columns / mean(rows), corrected for its start at zero
        by_row = (rows / rows.mean().clamp(min=1e-30)).sqrt_().add_(1e-15).reciprocal_()
        return by_row, (columns / correction).sqrt_().add_(EPSILON).reciprocal_()

    def _follow(self, part: Stretch, codes_start: int, start: int, scaled: Tensor, learning_rate: float) -> None:
        """Momentum of a piece of scaled gradient, and the step along it; what is scaled is still in the cache."""
        first = _Moment(self.state, _FACTORED_FIRST, codes_start + start, len(scaled))
        first.values.lerp_(scaled, 1 - BETAS[0])
        begin = part.start + start
        values = self._group.values[begin : begin + len(scaled)]
        if begin < self._group.decayed:
            values.mul_(1 - learning_rate * self._weight_decay)
        values.add_(first.values, alpha=-learning_rate / (1 - BETAS[0] ** self.steps))
        first.keep()


class _Moment:
    """A piece of a moment that is kept in 8 bits: signed, or (roots of second moments) unsigned and rounded up.

    Args:
        state: holds the codes under `name` and their scales beside it.
        name: of the moment.
        start: where the piece begins, at a whole group of scales.
        count: its length; whole groups, but for the last piece.
    """

    def __init__(self, state: dict[str, Tensor], name: str, start: int, count: int) -> None:
        groups = slice(start // _SCALE_GROUP, -(-(start + count) // _SCALE_GROUP))
        self._codes = state[name].view(-1, _SCALE_GROUP)[groups]
        self._scales = state[name + "_scales"][groups]
        self._padded = self._codes.to(self._scales.dtype).mul_(self._scales[:, None])
        self.values = self._padded.view(-1)[:count]

    def keep(self) -> None:
        """Write `values`, changed in place, back into 8 bits; they are used up."""
        if self._codes.dtype == torch.uint8:
            # a hair above the largest, so that rounding up never leaves the range
            torch.mul(self._padded.amax(1), (1 + 1e-6) / 255, out=self._scales).clamp_(min=1e-30)
            self._codes.copy_(self._padded.div_(self._scales[:, None]).ceil_())
        else:
            torch.mul(self._padded.abs().amax(1), 1 / 127, out=self._scales).clamp_(min=1e-30)
            self._codes.copy_(self._padded.mul_(self._scales.reciprocal()[:, None]).round_())
