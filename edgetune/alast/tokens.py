"""Part 3, adaptive token selection: the patches the class token attends to most stay, per image.

arXiv 2408.08670, "adaptive token selection". The score of a patch is the softmax attention it receives from the class
token in the block just passed, mean over heads (without a class token: mean over heads and queries).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def top_tokens(received: Tensor, kept: int, prefix_tokens: int = 1) -> Tensor:
    """Positions (B, prefix + kept) of the tokens that stay: the prefix in its order, then patches by falling attention.

    Position embeddings were added at the bottom, so the order of patches means nothing to the model; falling attention
    is the order of the reference, and comes free from one top-k.

    Args:
        received: attention each token receives, (B, N), each at most 1, prefix included.
        kept: patches to keep of each image.
        prefix_tokens: tokens before the patches; always kept.
    """
    scores = received.detach().clone()
    for position in range(prefix_tokens):
        scores[:, position] = prefix_tokens + 1 - position  # above any attention, and in order
    return scores.topk(prefix_tokens + kept, dim=1).indices


def select_tokens(x: Tensor, received: Tensor, kept: int, prefix_tokens: int = 1) -> Tensor:
    """Tokens (B, N, C) to (B, prefix + kept, C), ordered as `top_tokens` says; one top-k and one gather."""
    positions = top_tokens(received, kept, prefix_tokens)
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
