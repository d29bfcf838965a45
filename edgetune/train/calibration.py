"""What a run's first steps say of the rest of it, beside what its plan foresaw."""

from __future__ import annotations

from edgetune.measure.memory import PeakMeter
from edgetune.schema import Calibrated, Plan
from edgetune.train.budget import Budget
from edgetune.train.governor import Spent
from edgetune.train.progress import Progress

CALIBRATED_AFTER = 8  # steps of a run, or all that a shorter one has: the plan is then held against them


def calibrated(
    plan: Plan, progress: Progress, budget: Budget, images: int, spent: Spent, memory: PeakMeter, *, ended: bool
) -> Calibrated:
    """Seconds, joules and memory of the whole run, by its pace so far.

    Args:
        plan: the plan.
        progress: how far the run is.
        budget: knows what a step, an evaluation, a save and preparing an image take.
        images: to train on.
        spent: so far; joules of the rest are reckoned at its mean watts.
        memory: what the run took at its peak so far.
        ended: nothing is to come.
    """
    views = min(plan.feature_cache.views, plan.epochs) if plan.feature_cache else 0
    preparing_s = views * budget.preparing_image_s * images
    left_steps = max(0, plan.total_steps - progress.step)
    left_epochs = max(0, plan.epochs - progress.epoch)
    evaluations = max(1.0, left_epochs / plan.recipe.evaluate_every)  # the last one always comes
    if plan.recipe.evaluate_steps:
        evaluations += left_steps // plan.recipe.evaluate_steps
    left_s = left_steps * budget.step_s + left_epochs * budget.save_s
    left_s += budget.val_once_s + evaluations * (budget.evaluation_s - budget.val_once_s)
    unprepared = budget.unprepared_steps(progress.step, plan.total_steps)
    left_s += unprepared * plan.batch_size * budget.preparing_image_s
    if ended:
        left_s = 0.0
    unknown = spent.joules is None or spent.watts is None
    return Calibrated(
        after_steps=progress.step,
        step_s=budget.step_s,
        epoch_s=plan.steps_per_epoch * budget.step_s + preparing_s / plan.epochs,
        total_s=spent.seconds + left_s,
        total_energy_j=None if unknown else (spent.joules or 0.0) + left_s * (spent.watts or 0.0),
        baseline_bytes=memory.baseline_bytes,
        peak_memory_bytes=memory.peak_bytes(),
    )
