"""Parts 2 and 3 as plain arithmetic: how a budget moves, and how many patch tokens it lets through.

Budgets are Python floats (double precision), one per block. The rule of arXiv 2408.08670, i counting mini-batches:

    b_l ← clip(b_l + α (Δ_l^{i+1} − Δ_l^i), b_min, b_max),      Δ_l^0 = 0

No momentum; α is the base learning rate, constant under any schedule. Between two clips the sum telescopes, so a budget
says how Δ has changed since the last clip and not how large it is: with the reference's initial 0.9, a block whose
first delta exceeds 0.1/α starts from 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def update_budget(budget: float, delta: float, former_delta: float, alpha: float, low: float, high: float) -> float:
    """One application of the rule above. A delta that isn't a number leaves the budget as it is."""
    if not (math.isfinite(delta) and math.isfinite(former_delta)):
        return budget
    return min(max(budget + alpha * (delta - former_delta), low), high)


def kept_count(budget: float, length: int) -> int:
    """Patch tokens that a block with this budget lets through.

    Args:
        budget: b_l.
        length: tokens in the sequence, counting the patches and one class token.

    The reference keeps `min(int(b · length), length − 1)` patches beside the class token, and at least one is kept
    here. Further prefix tokens (distillation, registers) are never dropped and not counted in `length`, and a model
    without a class token is counted as if it had one: the patches kept then depend on the budget and the patches that
    enter alone, whatever stands before them.
    """
    return max(1, min(int(budget * length), length - 1))


def within_band(count: int, patches: int, fewest: int, most: int) -> int:
    """`count` clipped to a block's band; never above `most` nor above the `patches` there are."""
    return min(max(count, fewest), most, patches)


def kept_through(budgets: Sequence[float], patches: int) -> list[int]:
    """Patch tokens leaving each block when an image of `patches` patches passes blocks with these budgets.

    Dropped tokens don't return, so budgets compound. The result never grows along the blocks, and it is monotone in
    every budget and in `patches`: budgets at their maximum bound the memory of every step.
    """
    leaving = []
    for budget in budgets:
        patches = kept_count(budget, patches + 1)
        leaving.append(patches)
    return leaving
