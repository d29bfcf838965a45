"""Part 4, adaptive layer freezing: which K blocks train this step.

arXiv 2408.08670, "adaptive layer freezing". The reference draws K blocks one after the other, without replacement, with
p = softmax(b). Over budgets in [0.5, 1] that is close to uniform (no ratio of two p exceeds e^0.5 = 1.65), which is why
"uniform" is the control that belongs beside every claim.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal

Draw = Literal["softmax", "uniform", "proportional", "top"]


def draw_blocks(
    budgets: Sequence[float],
    k: int,
    rng: random.Random,
    *,
    draw: Draw = "softmax",
    among: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Indices of the blocks that train, ascending.

    Args:
        budgets: one per block.
        k: how many; all candidates where there are no more than that.
        rng: consumes one number per block drawn ("softmax", "proportional"), what `sample` needs ("uniform"), or none.
        draw: "softmax", the reference; "proportional", p = b / Σb; "uniform"; "top", the k largest budgets, ties to the
            deeper block, whose gradient is cheaper to reach.
        among: blocks that may be drawn; all by default.
    """
    candidates = list(range(len(budgets)) if among is None else among)
    if k >= len(candidates):
        return tuple(sorted(candidates))
    if draw == "top":
        return tuple(sorted(sorted(candidates, key=lambda block: (budgets[block], block), reverse=True)[:k]))
    if draw == "uniform":
        return tuple(sorted(rng.sample(candidates, k)))
    weights = [math.exp(budgets[block]) if draw == "softmax" else budgets[block] for block in candidates]
    chosen = []
    for _ in range(k):
        position = rng.choices(range(len(candidates)), weights)[0]
        chosen.append(candidates.pop(position))
        weights.pop(position)
    return tuple(sorted(chosen))
