"""What is left of the caps on time and energy, in steps: from what steps, evaluations and saves have taken so far.

A run that a cap will end has a schedule that ends there: how many steps are left is reckoned anew before every step. An
evaluation and a save must always still be possible; they are inside the budget.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable

from edgetune.plan.cost import AMPLY, LEAST_SAVE_S, sampled
from edgetune.schema import Plan, StoppedBy
from edgetune.train.governor import Governor, Spent
from edgetune.train.progress import Pace

_RECENT_STEPS = 20  # whose median says what a step takes
_UNSETTLED_STEPS = 2
_WRITE_BYTES_PER_S = 50e6  # of a slow disk: until something was written
_TELLING_SHARE = 0.25  # of the model: a smaller file's time is that of bringing it to the disk, whatever its size


class Budget:
    """Of one run.

    Args:
        plan: its epochs, and how often it evaluates.
        governor: holds the caps.
        val_images: in an evaluation.
        weights_bytes: of the whole model, as it is saved.
        state_bytes: of a state: what trains, and the optimizer's part.
        spent: says what is used up.
    """

    def __init__(
        self,
        plan: Plan,
        governor: Governor,
        val_images: int,
        weights_bytes: int,
        state_bytes: int,
        spent: Callable[[], Spent],
    ) -> None:
        self._plan, self._governor, self._val_images, self._spent = plan, governor, val_images, spent
        self._weights_bytes, self._state_bytes = weights_bytes, state_bytes
        self._recent_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._steps = 0  # of this sitting
        self._resumed = False  # with an earlier sitting's pace
        self._prepared_steps = 0  # of the run, before which nothing is to be prepared any more
        self.pace = Pace()

    def resume(self, pace: Pace) -> None:
        """Go by what an earlier sitting saw, until there is more to go by."""
        self.pace = pace
        self._resumed = pace.step_s > 0
        if self._resumed:
            self._recent_s.append(pace.step_s)

    @property
    def settled(self) -> bool:
        """Whether a step's time is known well enough to say how long the run will be."""
        return self._resumed or self._steps > _UNSETTLED_STEPS

    @property
    def most_epochs(self) -> int:
        """Epochs to go on for: a plan foresees what a cap has room for, and a faster run goes on towards the wish."""
        return self._plan.wanted_epochs if self._governor.budgeted else self._plan.epochs

    # -- what was seen ------------------------------------------------------------------------------------------------

    def note_step(self, seconds: float) -> None:
        """A step took so long; a sitting's first, which brings in code and memory, counts until there is another."""
        if self._steps == 1:
            self._recent_s.pop()
        self._steps += 1
        self._recent_s.append(seconds)
        self.pace.step_s = statistics.median(self._recent_s)

    def note_preparing(self, image_s: float) -> None:
        """Preparing images takes so long for each."""
        self.pace.image_s = image_s

    def note_prepared(self, epoch: int, stop_batch: int) -> None:
        """The batches of an epoch are prepared up to one."""
        self._prepared_steps = epoch * self._plan.steps_per_epoch + stop_batch

    @property
    def unsampled(self) -> bool:
        """Whether a batch should be evaluated to see what a whole evaluation takes, which a cap must leave room for."""
        worth_it = sampled(self._val_images, self._plan.batch_size, self._plan.feature_cache is not None)
        return self._governor.budgeted and worth_it and not self._evaluated

    def note_sample(self, image_s: float | None) -> None:
        """Evaluating takes so long for each image; as long as training on it where that is not known."""
        self.pace.evaluated_image_s = self.step_s / self._plan.batch_size if image_s is None else image_s

    def note_evaluation(self, seconds: float) -> None:
        """An evaluation took so long, its images prepared before."""
        self.pace.evaluation_s = seconds

    def note_written(self, size_bytes: int, seconds: float) -> None:
        """A file of the run took so long; the disk is as fast as it was for the slowest of those that are large."""
        if size_bytes >= _TELLING_SHARE * self._weights_bytes and seconds > 0:
            slowest = self.pace.write_bytes_per_s
            self.pace.write_bytes_per_s = min(size_bytes / seconds, math.inf if slowest is None else slowest)

    def note_weights(self, seconds: float) -> None:
        """Writing the whole model, and what is kept beside it, took so long."""
        self.pace.weights_s = max(seconds, self.pace.weights_s or 0.0)

    def note_state(self, seconds: float) -> None:
        """Writing a state took so long; one before the first step, which has less in it, says nothing."""
        if self.pace.step_s:
            self.pace.state_s = max(seconds, self.pace.state_s or 0.0)

    # -- what is to be expected ---------------------------------------------------------------------------------------

    @property
    def step_s(self) -> float:
        """What a step takes; 0 before the first."""
        return self.pace.step_s

    @property
    def preparing_image_s(self) -> float:
        """What preparing an epoch takes for each of its images."""
        return self.pace.image_s

    @property
    def evaluation_s(self) -> float:
        """What an evaluation takes: as the last did; the first may have to prepare its images, as training had to."""
        if self.pace.evaluation_s is not None:
            return self.pace.evaluation_s
        if self.pace.evaluated_image_s is not None:
            return AMPLY * self._val_images * self.pace.evaluated_image_s
        trained_s = self.step_s / self._plan.batch_size
        lowest = self._plan.lowest_trainable_block
        if not trained_s and lowest:  # no step yet: blocks that train pass images as fast as those that prepare them
            trained_s = self.pace.image_s * (len(self._plan.blocks) - lowest) / lowest
        return self._val_images * (trained_s + self.pace.image_s)

    @property
    def val_once_s(self) -> float:
        """Of that, what the first one alone takes: preparing images that later ones find in the cache."""
        cache = self._plan.feature_cache
        return 0.0 if self._evaluated or not cache or not cache.val_bytes else self._val_images * self.pace.image_s

    @property
    def _evaluated(self) -> bool:
        """Whether an evaluation, or a sample of one, has said what it takes."""
        return self.pace.evaluation_s is not None or self.pace.evaluated_image_s is not None

    @property
    def save_s(self) -> float:
        """What the end of an epoch writes: a state, and the model if it is the best so far."""
        return self._written_s(self.pace.weights_s, self._weights_bytes) + self._written_s(
            self.pace.state_s, self._state_bytes
        )

    def _written_s(self, known_s: float | None, size_bytes: int) -> float:
        return size_bytes / (self.pace.write_bytes_per_s or _WRITE_BYTES_PER_S) if known_s is None else known_s

    def expected_steps(self, step: int) -> float:
        """Steps that the run will have had when it ends: those planned, or fewer where a cap will be spent before."""
        if not self._governor.budgeted:
            return self._plan.total_steps
        most = self.most_epochs * self._plan.steps_per_epoch
        if not self._recent_s:
            return max(step + 1, min(most, self._plan.total_steps))
        evaluating_s = self.evaluation_s - self.val_once_s
        each_s = self.step_s + evaluating_s / (self._plan.recipe.evaluate_every * self._plan.steps_per_epoch)
        if not each_s:
            return most
        left_s = self._governor.seconds_left(self._spent(), self._reserve_s())
        ready, left = max(0, self._prepared_steps - step), 0.0
        for steps, takes_s in ((ready, each_s), (self.unprepared_steps(step, most), each_s + self._preparing_step_s)):
            done = min(steps, left_s / takes_s)
            left, left_s = left + done, left_s - done * takes_s
        return min(most, step + max(1.0, left + left_s / each_s))

    def unprepared_steps(self, step: int, stop_step: int) -> int:
        """How many steps from one to another are over images that are still to be prepared for them."""
        cache = self._plan.feature_cache
        in_views = cache.views * self._plan.steps_per_epoch if cache else 0
        return max(0, min(in_views, stop_step) - max(step, self._prepared_steps))

    @property
    def _preparing_step_s(self) -> float:
        return self._plan.batch_size * self.pace.image_s

    def ended_by(self, step: int, preparing_s: float = 0.0) -> StoppedBy | None:
        """What ends the run after so many steps: the cap that another step, an evaluation and saving would break.

        Or so many seconds of preparing images, an evaluation and saving. Where nothing is capped, the plan: it may have
        been made under a charge that is no longer one.
        """
        if not self._governor.budgeted and step >= self._plan.total_steps:
            return "epochs"
        return self._over(max(self._reserve_s(), preparing_s + self._ending_s()))

    def near_the_end(self) -> bool:
        """Whether a cap would leave no room for a step between two evaluations."""
        return self._over(self._reserve_s() + self.evaluation_s) is not None

    def _reserve_s(self) -> float:
        """Two steps, an evaluation, and what is written then: best and last weights, an epoch's state and the last."""
        last_s = self._recent_s[-1] if self._recent_s else 0.0
        return 2 * max(last_s, self.step_s) + self._ending_s()

    def _ending_s(self) -> float:
        return LEAST_SAVE_S + 2 * AMPLY * self.save_s + self.evaluation_s

    def _over(self, reserve_s: float) -> StoppedBy | None:
        return self._governor.spent_cap(self._spent(), reserve_s)
