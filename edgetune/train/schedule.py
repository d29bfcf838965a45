"""The learning rate over a run. Never imports torch."""

from __future__ import annotations

import math

from edgetune.schema import Recipe


def learning_rate(recipe: Recipe, step: int, total_steps: float, planned_steps: int | None = None) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then a half cosine to zero, or constant.

    `total_steps` may change from step to step: where a cap will end the run, it is what the cap still has room for.
    The warm-up is a share of the run: where there will be fewer steps than the `planned_steps` it was made for, it ends
    as much sooner.

    Raises:
        ValueError: `step` lies outside the run.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} of {total_steps}")
    warmup_steps: float = recipe.warmup_steps
    if planned_steps is not None and warmup_steps and total_steps < planned_steps:
        warmup_steps = max(1.0, warmup_steps * total_steps / planned_steps)
    if step < warmup_steps:
        return recipe.learning_rate * min(1.0, (step + 1) / warmup_steps)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
