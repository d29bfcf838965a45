"""What is left of the caps on time and energy, in steps: from what steps, evaluations and saves have taken so far.

A run that a cap will end has a schedule that ends there: how many steps are left is reckoned anew before every step. An
evaluation and a save must always still be possible; they are inside the budget.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from edgetune.schema import Plan, StoppedBy
from edgetune.train.governor import Governor

_RECENT_STEPS = 20  # whose median says what a step takes


class Spent(NamedTuple):
    """What a run has used up."""

    seconds: float
    joules: float | None  # holes in the readings filled: a cap has to hold when a sensor is lost half-way
    save_s: float  # a save, on average


class Budget:
    """Of one run.

    Args:
        plan: its epochs, and how often it evaluates.
        governor: holds the caps.
        val_images: in an evaluation.
        spent: says what is used up.
    """

    def __init__(self, plan: Plan, governor: Governor, val_images: int, spent: Callable[[], Spent]) -> None:
        self._plan, self._governor, self._val_images, self._spent = plan, governor, val_images, spent
        # a plan foresees what a cap has room for; a faster run goes on towards what was wanted
        self.most_epochs = plan.wanted_epochs if governor.budgeted else plan.epochs
        self._recent_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._image_s = 0.0
        self._eval_s: float | None = None

    # -- what was seen ------------------------------------------------------------------------------------------------

    def note_step(self, seconds: float) -> None:
        """A step took so long."""
        self._recent_s.append(seconds)

    def note_preparing(self, image_s: float) -> None:
        """Preparing an epoch took so long for each of its images."""
        self._image_s = max(self._image_s, image_s)

    def note_evaluation(self, seconds: float) -> None:
        """An evaluation took so long."""
        self._eval_s = seconds

    # -- what is to be expected ---------------------------------------------------------------------------------------

    @property
    def step_s(self) -> float:
        """What a step takes; 0 before the first."""
        return statistics.median(self._recent_s) if self._recent_s else 0.0

    @property
    def preparing_image_s(self) -> float:
        """What preparing an epoch has taken for each of its images, at most."""
        return self._image_s

    @property
    def evaluation_s(self) -> float:
        """What an evaluation takes: as the last did; the first may have to prepare its images, as training had to."""
        if self._eval_s is not None:
            return self._eval_s
        return self._val_images * (self.step_s / self._plan.batch_size + self._image_s)

    @property
    def save_s(self) -> float:
        """What a save takes, amply."""
        return 0.2 + 1.5 * self._spent().save_s

    def expected_steps(self, step: int) -> float:
        """Steps that the run will have had when it ends: those planned, or fewer where a cap will be spent before."""
        if not self._governor.budgeted:
            return self._plan.total_steps
        most = self.most_epochs * self._plan.steps_per_epoch
        if not self._recent_s:
            return max(step + 1, min(most, self._plan.total_steps))
        spent = self._spent()
        each_s = self.step_s + self.evaluation_s / (self._plan.recipe.evaluate_every * self._plan.steps_per_epoch)
        left = self._governor.steps_left(spent.seconds, spent.joules, self._reserve_s(), each_s)
        return min(most, step + max(1.0, left))

    def spent_cap(self) -> StoppedBy | None:
        """The cap that another step, an evaluation and a save would break, if any."""
        return self._over(self._reserve_s())

    def near_the_end(self) -> bool:
        """Whether a cap would leave no room for a step between two evaluations."""
        return self._over(self._reserve_s() + self.evaluation_s) is not None

    def _reserve_s(self) -> float:
        last_s = self._recent_s[-1] if self._recent_s else 0.0
        return 2 * max(last_s, self.step_s) + self.save_s + self.evaluation_s

    def _over(self, reserve_s: float) -> StoppedBy | None:
        spent = self._spent()
        return self._governor.spent_cap(spent.seconds, spent.joules, reserve_s)
