"""Dropping tokens, and what that does to a gradient."""

from __future__ import annotations

from torch import Tensor


def gathered(x: Tensor, positions: Tensor) -> Tensor:
    """The tokens (B, N', C) of x (B, N, C) at positions (B, N')."""
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def scattered(dx: Tensor, positions: Tensor, tokens: int) -> Tensor:
    """Undo `gathered` for a gradient: (B, N', C) to (B, `tokens`, C), zeros where a token was dropped."""
    below = dx.new_zeros(len(dx), tokens, dx.shape[2])
    return below.scatter_(1, positions.unsqueeze(-1).expand(-1, -1, dx.shape[2]), dx)
