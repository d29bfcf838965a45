"""Part 1, importance: the class-token delta of a block, Δ_l = (CLS_l − CLS_{l−1})².

CLS is taken from the raw residual stream before and after the block, from the ordinary training forward, so the
measure costs one subtraction of a (B, C) tensor. arXiv 2408.08670, "class token delta".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Reduction = Literal["sum", "mean"]


def token_delta(
    before: Tensor,
    after: Tensor,
    *,
    reduction: Reduction = "sum",
    class_token: bool = True,
    prefix_tokens: int = 1,
) -> Tensor:
    """Squared movement of the image's summary through a block, as a scalar tensor on its device, without gradient.

    Args:
        before: tokens entering the block, (B, N, C), the residual stream as it is, not normalised.
        after: tokens leaving the block, before any is dropped, same shape.
        reduction: over images; "sum" is the reference, and grows with the batch; "mean" does not, so a smaller last
            batch isn't read as a change. Channels are summed in both, which keeps the two B times apart and no more.
        class_token: the summary is the class token; where a model has none, it is the mean of the patch tokens, which
            is what its classifier pools.
        prefix_tokens: tokens before the patches; used without a class token only.
    """
    if class_token:
        moved = after[:, 0].detach() - before[:, 0].detach()
    else:
        moved = after[:, prefix_tokens:].detach().mean(1) - before[:, prefix_tokens:].detach().mean(1)
    if moved.dtype.itemsize < 4:
        moved = moved.float()  # a sum of squares overflows half precision
    total = moved.square().sum()
    return total if reduction == "sum" else total / len(before)
