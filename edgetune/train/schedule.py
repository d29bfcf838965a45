"""The learning rate over a run. Never imports torch."""

from __future__ import annotations

import math

from edgetune.schema import Recipe


def learning_rate(recipe: Recipe, step: int, total_steps: float) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then a half cosine to zero, or constant.

    `total_steps` may change from step to step: where a cap will end the run, it is what the cap still has room for.

    Raises:
        ValueError: `step` lies outside the run.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} of {total_steps}")
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant":
        return recipe.learning_rate
    progress = (step - recipe.warmup_steps) / max(1, total_steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
