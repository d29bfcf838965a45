"""One block on the residual stream of a batch, a part of the batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from edgetune.model.block import Saved, Shape, attention_forward, mlp_forward
from edgetune.model.torch_ops import TorchOps
from edgetune.train.lean.saved import Discarded

_DISCARDED = Discarded()


def keep_nothing() -> tuple[Discarded, Discarded]:
    """For `pass_block`, where no backward pass will follow."""
    return _DISCARDED, _DISCARDED


def pass_block(
    ops: TorchOps,
    x: Tensor,
    weights: Mapping[str, Tensor],
    shape: Shape,
    part: int,
    *,
    keepers: Callable[[], tuple[Saved[Tensor], Saved[Tensor]]] = keep_nothing,
    readers: int | None = None,
    observe: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Forward through both halves of a block.

    Args:
        ops: how to compute.
        x: the stream (B, N, C), which is written over.
        weights: of the block, by names within it.
        shape: heads and epsilon.
        part: images at a time.
        keepers: asked once for each part: where its attention and its MLP save.
        readers: only the first so many tokens are needed behind the block; None: all.
        observe: also give the attention that the first so many tokens pay to every token.

    Returns:
        The stream behind the block, (B, N or `readers`, C), and the attention received, (b, N) for each part.
    """
    received: list[Tensor] = []
    for start in range(0, len(x), part):
        attention, mlp = keepers()
        some = x[start : start + part]
        half = attention_forward(ops, some, weights, shape, attention, readers=readers, observe=observe)
        mlp_forward(ops, half.y, weights, shape, mlp)
        if half.received is not None:
            received.append(half.received)
    return x if readers is None else x[:, :readers].clone(), received  # the rest of the stream is free
