"""One block on the residual stream of a batch: half by half, and in each half a part of the batch at a time.

So the weights of one half are all that a block which does not train ever needs in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from edgetune.model.block import ATTENTION_SCALE, MLP_SCALE, Half, Saved, Shape, attention_forward, mlp_forward
from edgetune.model.torch_ops import TorchOps
from edgetune.train.halves import part_behind, parts_of
from edgetune.train.lean.saved import Discarded

_DISCARDED = Discarded()


def keep_nothing(half: Half) -> Discarded:
    """For `pass_block`, where no backward pass will follow."""
    return _DISCARDED


def scale_sums(half: Half, weights: Mapping[str, Tensor], totals: dict[str, Tensor]) -> None:
    """Bring LayerScale into a half's sums of gradients that were made without it (`unscaled`), once for all parts.

    With W and b the layer before the scale γ, and G and s the sums of their gradients as if γ were 1:
    dγ = rowsum(W ∘ G) + b s, dW = γ G row by row, db = γ s.
    """
    layer, scale = ("mlp.fc2", MLP_SCALE) if half == "mlp" else ("attn.proj", ATTENTION_SCALE)
    if scale not in weights or f"{layer}.weight" not in totals:  # the model has none, or adapters train
        return
    total, biases, gamma = totals[f"{layer}.weight"], totals[f"{layer}.bias"], weights[scale]
    totals[scale].add_(torch.linalg.vecdot(total, weights[f"{layer}.weight"]))
    totals[scale].addcmul_(biases, weights[f"{layer}.bias"])
    total.mul_(gamma[:, None])
    biases.mul_(gamma)


def pass_block(
    ops: TorchOps,
    x: Tensor,
    weights: Callable[[Half], Mapping[str, Tensor]],
    shape: Shape,
    part: int,
    *,
    keeper: Callable[[Half], Saved[Tensor]] = keep_nothing,
    readers: int | None = None,
    observe: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Forward through both halves of a block.

    Args:
        ops: how to compute.
        x: the stream (B, N, C), which is written over.
        weights: of a half, by names within the block; asked once for each half, and done with before the next.
        shape: heads and epsilon.
        part: images at a time; of the MLP, more where few tokens are left.
        keeper: asked once for each half of each part: where it saves.
        readers: only the first so many tokens are needed behind the block; None: all.
        observe: also give the attention that the first so many tokens pay to every token.

    Returns:
        The stream behind the block, (B, N or `readers`, C), and the attention received, (b, N) for each part.
    """
    received: list[Tensor] = []
    tokens, parts = x.shape[1], parts_of(len(x), part)
    ours = weights("attention")
    for some in parts:
        half = attention_forward(ops, x[some], ours, shape, keeper("attention"), readers=readers, observe=observe)
        if half.received is not None:
            received.append(half.received)
    if readers is not None:
        x = x[:, :readers].clone()  # so that the MLP's parts are of these alone
        parts = parts_of(len(x), part_behind(part, tokens, readers))
    ours = weights("mlp")
    for some in parts:
        mlp_forward(ops, x[some], ours, shape, keeper("mlp"))
    return x, received
