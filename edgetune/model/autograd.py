"""The hand-derived block as a function that autograd knows, for models that are trained the ordinary way.

Saved is what `edgetune.model.block` says a half saves: of both halves, or of the MLP alone where no gradient goes below
it. The trainer does without this module; it calls the block's functions itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgetune.model.block import (
    ATTENTION_NAMES,
    MLP_NAMES,
    Shape,
    attention_backward,
    attention_forward,
    mlp_backward,
    mlp_forward,
)
from edgetune.model.torch_ops import TorchOps


def block(x: Tensor, weights: Mapping[str, Tensor], shape: Shape, *, readers: int | None = None) -> Tensor:
    """A transformer block that keeps little for its backward pass.

    Args:
        x: (B, N, C).
        weights: by timm's names within a block, such as `attn.qkv.weight`: of a block of ours, its named parameters.
        shape: heads and epsilon.
        readers: only the outputs of the first so many tokens are needed; None: all.
    """
    y: Tensor = BlockFunction.apply(x, shape, readers, tuple(weights), *weights.values())
    return y


class BlockFunction(torch.autograd.Function):
    """`block`, with the weights one by one behind the tuple of their names."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: Shape, readers: int | None, names: tuple[str, ...], *values: Tensor
    ) -> Tensor:
        ops, weights = TorchOps(), dict(zip(names, values, strict=True))
        needs = {name for name, needed in zip(names, ctx.needs_input_grad[4:], strict=True) if needed}
        ctx.shape, ctx.readers, ctx.names, ctx.needs = shape, readers, names, needs
        first, second = SavedExactly(x=x), SavedExactly()
        y = attention_forward(ops, x.clone(), weights, shape, first, readers=readers).y
        if not ctx.needs_input_grad[0] and not needs & ATTENTION_NAMES:
            first.clear()  # the backward pass ends before it
        y = mlp_forward(ops, y, weights, shape, second).y.contiguous()  # or the tokens nobody reads would live on in it
        ctx.kept = tuple(first), tuple(second)
        ctx.save_for_backward(*values, *first.values(), *second.values())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ops, tensors = TorchOps(), iter(ctx.saved_tensors)
        # One after the other takes what is its own: zip asks for a name first.
        weights, first, second = (SavedExactly(zip(names, tensors, strict=False)) for names in (ctx.names, *ctx.kept))
        below = ctx.needs_input_grad[0] or bool(ctx.needs & ATTENTION_NAMES)
        dx, gradients = mlp_backward(
            ops,
            dy.clone(memory_format=torch.contiguous_format),
            second,
            weights,
            ctx.shape,
            needs=ctx.needs & MLP_NAMES,
            input_needed=below,
        )
        if dx is not None:
            dx, gradients = attention_backward(
                ops,
                dx,
                first,
                weights,
                ctx.shape,
                needs=ctx.needs & ATTENTION_NAMES,
                totals=gradients,
                input_needed=ctx.needs_input_grad[0],
                readers=ctx.readers,
            )
        return (dx, None, None, None, *(gradients.get(name) for name in ctx.names))


class SavedExactly(dict[str, Tensor]):
    """Tensors by name, as they are; x may be there already, and is otherwise copied, since it will be written over."""

    def put(self, name: str, values: Tensor) -> None:
        if name not in self:
            self[name] = values.clone() if name == "x" else values

    def take(self, name: str) -> Tensor:
        return self.pop(name)
