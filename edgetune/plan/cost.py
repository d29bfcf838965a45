"""What a job costs in time and energy: seconds from a profile's probes, joules from watts.

Blocks are priced as the profile's probes of that trainer say (`edgetune.plan.rates`), part by part, as many images at
a time as pass together; updates, packing and weights made ready by probes of their own (`edgetune.plan.tensors`); what
else goes over memory by the rate of copying, with factors that were measured on two x86 cores
(benchmarks/predict_time.py); images by what reading one took. Without a profile seconds and joules are unknown, not
guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgetune.plan.bill import FirstUse, expected_bill, filling_part, most_bytes
from edgetune.plan.cache import stretch_batches
from edgetune.plan.clock import Clock
from edgetune.plan.job import Job
from edgetune.plan.lean_bill import group_size, saved_bytes
from edgetune.plan.rates import Rates
from edgetune.plan.work import work_per_image
from edgetune.schema import Compute, Power, Predicted, StepPart

MODEL = "edgetune.plan.cost/5"
# What a run under a cap reckons with for saving at its end: so many times what is known, and this at least.
AMPLY, LEAST_SAVE_S = 1.25, 0.2
SAMPLED_BATCHES = 8  # of an evaluation that is worth a sample of its pace
_ROUNDING = 1e-9


class Cost(NamedTuple):
    """Seconds of a run's parts."""

    step_s: float
    epoch_s: float
    eval_s: float
    start_s: float
    view_s: float = 0.0  # filling a feature cache with one view of the training images
    views: int = 1
    val_once_s: float = 0.0  # and with the validation images
    first_step_s: float = 0.0  # what the first step takes beyond the others
    evaluations: float = 1.0  # an epoch
    save_s: float = 0.0  # at the end of an epoch: a state and the model
    first_eval_s: float = 0.0  # as a run expects it before there was one
    stretch: float = 1.0  # epochs whose images are prepared together under a cap

    def between_s(self, epochs: float) -> float:
        """What so many epochs take besides training; a run always ends with an evaluation and a save."""
        return max(1.0, self.evaluations * epochs) * self.eval_s + max(1.0, epochs) * self.save_s

    def once_s(self, epochs: float) -> float:
        """What is spent once, on caches and the first step, in a run of so many epochs."""
        return self.val_once_s + self.filling_s(epochs)

    def filling_s(self, epochs: float) -> float:
        """Of that, what the epochs themselves spend."""
        whole = math.floor(epochs + _ROUNDING)
        begun = min(1.0, math.ceil((epochs - whole) / self.stretch - _ROUNDING) * self.stretch)
        return self.first_step_s + self.view_s * min(self.views, whole + begun)

    def total_s(self, epochs: float) -> float:
        """The whole run."""
        return self.start_s + self.once_s(epochs) + epochs * self.epoch_s + self.between_s(epochs)

    @property
    def reserve_s(self) -> float:
        """What a run under a cap keeps back for its end, in case that takes longer (`edgetune.train.budget`)."""
        saving_s = LEAST_SAVE_S + (2 * AMPLY - 1) * self.save_s
        return 2 * self.step_s + saving_s + max(0.0, self.first_eval_s - self.eval_s)

    def needed_s(self, epochs: float) -> float:
        """Of a cap, to get through so many epochs."""
        return self.total_s(epochs) + self.reserve_s


def sampled(val_images: int, batch_size: int, over_features: bool) -> bool:
    """Whether a run under a cap learns from a sample what an evaluation takes.

    A short one, or one over features that are still to be prepared, is expected to go at the pace of training.
    """
    return val_images >= SAMPLED_BATCHES * batch_size and not over_features


# --- time ------------------------------------------------------------------------------------------------------------


def time_of(
    job: Job,
    train_images: int,
    val_images: int,
    rates: Rates,
    file_bytes: float | None = None,
    evaluations: float = 1.0,
) -> Cost | None:
    """Expected seconds, or None where nothing was timed.

    Args:
        job: what is to be done.
        train_images: in an epoch.
        val_images: in an evaluation.
        rates: of this machine.
        file_bytes: of an image file, on average; None: as many as an image twice as wide as the model's would have.
        evaluations: in an epoch, on average.
    """
    if not rates.known:
        return None
    spec, clock = job.spec, Clock(job, rates)
    parts = job.parts
    kept = clock.packing_s()
    update = clock.update_s(parts) + clock.ready_in_step_s()
    image = clock.image_s(file_bytes)
    part, filling = job.micro_batch_size, filling_part(job)
    group = group_size(spec, filling)
    evaluating = clock.evaluating(part) / part
    view = val_once = weights = 0.0
    if job.over_features:
        frozen = clock.frozen(filling) / filling + image
        view, val_once = (
            count * frozen + -(-count // group) * clock.ready_s(job.lowest) for count in (train_images, val_images)
        )
        image = clock.feature_s()
    else:
        evaluating += clock.frozen(part) / part
        weights = -(-val_images // job.batch_size) * clock.ready_s(job.lowest)
    step = parts * (clock.forward() + clock.backward()) + kept + update + job.batch_size * image
    evaluation = val_images * (evaluating + image) + weights + -(-val_images // part) * clock.merging_s()
    first_evaluation = val_images * step / job.batch_size
    if sampled(val_images, job.batch_size, job.over_features):
        first_evaluation = (AMPLY + 2 * job.batch_size / val_images) * evaluation  # a batch is passed twice
    steps = -(-train_images // job.batch_size)
    # the last batch of an epoch may be a small one
    epoch = train_images / job.batch_size * (step - update) + steps * update
    return Cost(
        step_s=step,
        epoch_s=epoch,
        eval_s=evaluation,
        start_s=clock.start_s(),
        view_s=view,
        views=job.levers.feature_views,
        val_once_s=val_once,
        first_step_s=clock.first_step_s(),
        evaluations=evaluations,
        save_s=clock.save_s(),
        first_eval_s=first_evaluation,
        stretch=stretch_batches(job, steps, group) / steps,
    )


def step_parts(job: Job, rates: Rates, watts: float | None, file_bytes: float | None = None) -> list[StepPart]:
    """An optimizer step row by row, on average over the draws of K blocks; the seconds add up to `Cost.step_s`.

    Args:
        job: what is to be done.
        rates: of this machine.
        watts: while training; None: joules are unknown.
        file_bytes: see `time_of`.

    Returns:
        Nothing where nothing was timed.
    """
    if not rates.known:
        return []
    spec, clock = job.spec, Clock(job, rates)
    backward = {index: (passing, weights) for index, passing, weights in clock.backward_blocks()}
    embedding = clock.embedding_backward() if job.embeddings_trainable else 0.0
    seconds: list[tuple[str, float, float, float, float]] = []
    if not job.over_features:
        seconds.append(("embedding and frozen blocks", clock.below(), 0.0, embedding, 0.0))
    for index in range(job.lowest, spec.depth):
        passing, weights = backward.get(index, (0.0, 0.0))
        kept = saved_bytes(job, index) if job.lean else 0.0
        seconds.append((f"block {index}", clock.above(range(index, index + 1)), passing, weights, kept))
    found = [
        _part(name, watts, job.parts * forward, job.parts * passing, job.parts * weights, round(kept))
        for name, forward, passing, weights, kept in seconds
    ]
    image_s = clock.feature_s() if job.over_features else clock.image_s(file_bytes)
    rest = {
        "saved tensors packed and unpacked": clock.packing_s(),
        "frozen weights made ready": clock.ready_in_step_s(),
        "optimizer": clock.update_s(job.parts),
        "features read" if job.over_features else "images read": job.batch_size * image_s,
    }
    return found + [_part(name, watts, spent) for name, spent in rest.items() if spent]


def _part(
    name: str, watts: float | None, forward: float, passing: float = 0.0, weights: float = 0.0, kept: int = 0
) -> StepPart:
    joules = None if watts is None else watts * (forward + passing + weights)
    return StepPart(
        name=name,
        forward_s=forward,
        pass_gradient_s=passing,
        weight_gradient_s=weights,
        saved_bytes=kept,
        energy_j=joules,
    )


# --- energy ----------------------------------------------------------------------------------------------------------


def watts_of(power: Power | None, compute: Compute | None, power_w: float | None) -> float | None:
    """Power while training: what the user says, else what the probes drew, else what is drawn at rest.

    A sensor that shows nothing, or less, is as good as none. As the source says it, since a cap counts that.
    """
    if power_w is not None:
        return power_w
    if compute is not None:
        drawn = [(cost.energy_j, cost.seconds) for cost in compute.block_costs if cost.energy_j is not None]
        seconds, joules = sum(spent for _, spent in drawn), sum(used for used, _ in drawn if used)
        if seconds > 0 and joules > 0:
            return joules / seconds
        if compute.busy_w is not None and compute.busy_w > 0:
            return compute.busy_w
    if power is None:
        return None
    return power.total_w if power.total_w is not None and power.total_w > 0 else None


def predict(
    job: Job,
    runtime_bytes: int,
    first_use: FirstUse,
    cost: Cost | None,
    watts: float | None,
    epochs: float,
    *,
    time_factor: float = 1.0,
    margin_bytes: int = 0,
    parts: Sequence[StepPart] = (),
) -> Predicted:
    """The plan's prediction, and how far it may be off (`edgetune.plan.certainty`)."""
    bill = expected_bill(job, runtime_bytes, first_use)
    epoch_s = cost.epoch_s + cost.filling_s(epochs) / max(1, epochs) if cost else None
    total_s = cost.total_s(epochs) if cost else None
    return Predicted(
        peak_memory_bytes=bill.total,
        memory=bill,
        step_s=cost.step_s if cost else None,
        epoch_s=epoch_s,
        total_s=total_s,
        epoch_energy_j=None if epoch_s is None or watts is None else epoch_s * watts,
        total_energy_j=None if total_s is None or watts is None else total_s * watts,
        train_flops_per_image=work_per_image(job).total,
        model=MODEL,
        first_epoch_s=cost.epoch_s + cost.view_s + cost.first_step_s if cost else None,
        peak_memory_most_bytes=most_bytes(job, runtime_bytes, first_use) + margin_bytes,
        time_factor=time_factor if cost else None,
        step_parts=list(parts),
    )
