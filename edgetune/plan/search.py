"""The search: the plan that should learn most under the caps, among every setting of the levers.

Two kinds of levers. What a run *learns* with: how many trailing blocks may train, how many of them at a time (K), the
upper end of the token band. What it *saves* with, for the same blocks and tokens (`edgetune.plan.levers.economies`):
bits of what waits for the backward pass, recomputation, where frozen weights are kept; then the size of micro-batches,
the allocator, and how much of the wanted epochs the caps leave.

Branch and bound: what is learned with is taken best first by a bound on the objective (everything kept exactly, all
epochs), and the search ends where no bound is above what was found; a setting that does not fit in its leanest form is
left at once; among split batches memory is monotone in the micro-batch, so the largest that fits is bisected.

The objective stands for what a run can learn. It is a product of powers, so that halving any one term costs the same
share wherever the others stand:

    learning = ((1 + trained) / (1 + most trained))^0.5 · (K / trained)^0.25 · (mean share of tokens)^0.35
               · (epochs / wanted epochs)^0.5 · 0.98 where saved tensors have four bits

It grows with each of its terms. Its exponents are modelled, not measured: depth and epochs weigh most because head-only
training and stopping early lose most, K least because blocks take turns. Ties go to fewer joules, then to less work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Literal, NamedTuple

from edgetune.model.spec import ViTSpec
from edgetune.plan.bill import memory_bill
from edgetune.plan.cost import Cost, Rates, time_of, work_per_image
from edgetune.plan.engines import economical
from edgetune.plan.job import Job, job_for
from edgetune.plan.levers import Levers, economies, part_size
from edgetune.plan.methods import BAND_STEPS, Method
from edgetune.schema import Engine, NearestFeasible

_FOUR_BITS = 0.98  # of the learning, where saved tensors have no more
_ROUNDING = 1 + 1e-9  # so that a cap named as feasible is feasible when it is asked for


Allocator = Literal["fast", "lean"]
ALLOCATORS: tuple[Allocator, ...] = ("lean", "fast")


class Limits(NamedTuple):
    """The caps as numbers; None where there is none."""

    memory_bytes: int | None = None
    energy_j: float | None = None
    time_s: float | None = None


class Setting(NamedTuple):
    """What a run learns with, and how it saves memory meanwhile."""

    trained: int  # trailing blocks that may
    k: int  # of them at a time
    band_max: float  # of the tokens
    levers: Levers


class Choice(NamedTuple):
    """A setting of the levers, with what decides between settings."""

    job: Job
    setting: Setting
    epochs: float  # that fit the caps
    cost: Cost | None
    learning: float
    price: float  # joules or, where they are unknown, seconds or FLOPs of an epoch


class Problem(NamedTuple):
    """All that is fixed while searching."""

    method: Method
    spec: ViTSpec
    batch_size: int
    workers: int
    epochs: int
    train_images: int
    val_images: int
    runtime_bytes: int
    rates: Rates | None
    watts: float | None
    allocator: Allocator = "lean"
    engine: Engine = "torch"

    def settings(self) -> Iterator[Setting]:
        """What a run may learn with, the method's own setting first; all of it kept as the method keeps it."""
        most, levers = self.method.trained, self.method.levers
        if not self.method.searched:
            yield Setting(most, self.method.k, self.method.band[1], levers)
            return
        high = self.method.band[1]
        bands = [high, *(step for step in BAND_STEPS if step < high)]
        if "token_max" in self.method.given:
            bands = [high]
        for trained in range(most, -1, -1):
            for k in range(min(trained, self.method.k), 0, -1):
                for band_max in bands:
                    yield Setting(trained, k, band_max, levers)
        yield Setting(0, 0, high, levers)

    def thrifty(self, setting: Setting) -> list[Setting]:
        """The setting in every form that saves memory, as it is first and the leanest last."""
        if not self.method.searched:
            return [setting]
        given = set(self.method.given)
        if setting.trained == self.spec.depth or setting.levers.feature_cache != "off":
            given.add("frozen_weights")  # nothing is frozen, or it is on disk already
        forms = economical(economies(setting.levers, given), self.engine)
        return [setting._replace(levers=levers) for levers in forms]

    @property
    def whole(self) -> int:
        """Images that pass a block at a time where no cap asks for fewer."""
        levers = self.method.levers
        if levers.trainer == "lean":
            return part_size(self.spec, self.batch_size, levers.part_tokens)
        return self.batch_size

    def job(self, setting: Setting, micro_batch_size: int) -> Job:
        """The job of a setting."""
        return job_for(
            self.method._replace(levers=setting.levers),
            self.spec,
            batch_size=self.batch_size,
            micro_batch_size=micro_batch_size,
            workers=self.workers,
            allocator=self.allocator,
            engine=self.engine,
            trained=setting.trained,
            k=setting.k,
            band_max=setting.band_max,
        )

    def peak_bytes(self, job: Job) -> int:
        """Predicted peak of the process tree."""
        return memory_bill(job, self.runtime_bytes).total

    def least_job(self, setting: Setting) -> Job:
        """The job of a setting that needs least memory.

        One image at a time, as a rule; but a batch passed whole does not hold gradients beside the next part's
        activations, which can be the smaller bill where weights outweigh activations.
        """
        whole, single = self.job(setting, self.whole), self.job(setting, 1)
        return whole if self.peak_bytes(whole) <= self.peak_bytes(single) else single

    def cost(self, job: Job) -> Cost | None:
        """Predicted seconds."""
        return None if self.rates is None else time_of(job, self.train_images, self.val_images, self.rates)

    def learning(self, job: Job, epochs: float) -> float:
        """The objective; see the module."""
        return learning(job, epochs, most_trained=self.method.trained, wanted_epochs=self.epochs)


def learning(job: Job, epochs: float, *, most_trained: int, wanted_epochs: int) -> float:
    """What a run can be expected to learn, 1 where it trains `most_trained` blocks on all tokens for all epochs."""
    trained = sum(job.trainable)
    depth_term = ((1 + trained) / (1 + most_trained)) ** 0.5
    k_term = (job.k / trained) ** 0.25 if trained else 1.0
    tokens = sum(job.keep_expected) / (len(job.keep_expected) * job.spec.patches)
    exactness = _FOUR_BITS if trained and job.lean and job.levers.saved_precision == "int4" else 1.0
    return float(depth_term * k_term * tokens**0.35 * (epochs / wanted_epochs) ** 0.5 * exactness)


def search(problem: Problem, limits: Limits) -> Choice | None:
    """The best choice inside the limits, or None.

    The lean allocator needs less memory and more time, so it is taken only where it lets a plan learn more.
    """
    fast = _search(problem._replace(allocator="fast"), limits)
    everything = (problem.method.trained, problem.method.k, problem.method.band[1], problem.method.levers)
    if fast is not None and fast.setting == everything:
        return fast
    lean = _search(problem._replace(allocator="lean"), limits)
    return lean if fast is None or (lean is not None and lean.learning > fast.learning) else fast


def _search(problem: Problem, limits: Limits) -> Choice | None:
    """The best choice with one allocator."""
    ranked = []
    for order, setting in enumerate(problem.settings()):
        bound = problem.learning(problem.job(setting, problem.whole), problem.epochs)
        ranked.append((-bound, order, setting))
    ranked.sort(key=lambda entry: entry[:2])
    best: Choice | None = None
    for negative, _, setting in ranked:
        if best is not None and -negative < best.learning:
            break
        forms = problem.thrifty(setting)
        cap_bytes = limits.memory_bytes
        if cap_bytes is not None and problem.peak_bytes(problem.least_job(forms[-1])) > cap_bytes:
            continue
        for form in forms:
            found = _choose(problem, form, limits)
            if found and (best is None or (found.learning, -found.price) > (best.learning, -best.price)):
                best = found
    return best


def _choose(problem: Problem, setting: Setting, limits: Limits) -> Choice | None:
    """A setting with the largest micro-batch and the most epochs that fit; None where it does not fit."""
    least = problem.least_job(setting)
    if limits.memory_bytes is not None and problem.peak_bytes(least) > limits.memory_bytes:
        return None
    cost = problem.cost(least)
    epochs = _epochs_within(problem, cost, limits)
    if epochs < 1:
        return None
    job = problem.job(setting, _largest_micro_batch(problem, setting, limits.memory_bytes))
    return Choice(
        job=job,
        setting=setting,
        epochs=epochs,
        cost=cost,
        learning=problem.learning(job, epochs),
        price=_price(problem, job, cost),
    )


def choose(problem: Problem, setting: Setting, micro_batch_size: int, scale: Problem) -> Choice:
    """A setting as it is, whatever is capped; its learning on the scale of another problem."""
    job = problem.job(setting, micro_batch_size)
    cost = problem.cost(job)
    return Choice(
        job=job,
        setting=setting,
        epochs=problem.epochs,
        cost=cost,
        learning=scale.learning(job, problem.epochs),
        price=_price(problem, job, cost),
    )


def nearest_feasible(problem: Problem, limits: Limits) -> NearestFeasible:
    """The smallest value of each cap that admits a plan, the other caps held; None where no value does."""
    memory: int | None = None
    energy: float | None = None
    seconds: float | None = None
    # the lean one needs least memory, the fast one least time: without a cap on time the first alone decides
    timed = limits.time_s is not None or limits.energy_j is not None
    settings = [form for setting in problem.settings() for form in problem.thrifty(setting)]
    for allocator, setting in product(ALLOCATORS if timed else ALLOCATORS[:1], settings):
        job = problem._replace(allocator=allocator).least_job(setting)
        peak = problem.peak_bytes(job)
        cost = problem.cost(job)
        one_epoch_s = cost.total_s(1) if cost else None
        one_epoch_j = None if one_epoch_s is None or problem.watts is None else one_epoch_s * problem.watts
        fits = limits.memory_bytes is None or peak <= limits.memory_bytes
        quick = limits.time_s is None or one_epoch_s is None or one_epoch_s <= limits.time_s
        frugal = limits.energy_j is None or one_epoch_j is None or one_epoch_j <= limits.energy_j
        if quick and frugal:
            memory = peak if memory is None else min(memory, peak)
        if fits and quick and one_epoch_j is not None:
            energy = one_epoch_j * _ROUNDING if energy is None else min(energy, one_epoch_j * _ROUNDING)
        if fits and frugal and one_epoch_s is not None:
            seconds = one_epoch_s * _ROUNDING if seconds is None else min(seconds, one_epoch_s * _ROUNDING)
    return NearestFeasible(memory_bytes=memory, energy_j=energy, time_s=seconds)


def micro_batches(batch_size: int) -> list[int]:
    """Sizes that split a batch into equal parts, as nearly as it goes, ascending."""
    return sorted({math.ceil(batch_size / parts) for parts in range(1, batch_size + 1)})


def _largest_micro_batch(problem: Problem, setting: Setting, cap_bytes: int | None) -> int:
    """The largest micro-batch that fits, given that one does."""
    sizes = [size for size in micro_batches(problem.batch_size) if size <= problem.whole]
    if cap_bytes is None or problem.peak_bytes(problem.job(setting, sizes[-1])) <= cap_bytes:
        return sizes[-1]
    low, high = 0, len(sizes) - 2  # of those that are passed in parts; among them memory is monotone
    while low < high:
        middle = (low + high + 1) // 2
        if problem.peak_bytes(problem.job(setting, sizes[middle])) <= cap_bytes:
            low = middle
        else:
            high = middle - 1
    return sizes[low]


def _epochs_within(problem: Problem, cost: Cost | None, limits: Limits) -> float:
    """Epochs that time and energy allow, at most the wanted number; the last may be cut short."""
    if cost is None:
        return problem.epochs
    seconds = math.inf if limits.time_s is None else limits.time_s
    if limits.energy_j is not None and problem.watts is not None:
        seconds = min(seconds, limits.energy_j / problem.watts)
    if seconds == math.inf:
        return problem.epochs
    if cost.total_s(problem.epochs) <= seconds:
        return problem.epochs
    return max(0.0, (seconds - cost.start_s - cost.once_s) / (cost.epoch_s + cost.eval_s))


def _price(problem: Problem, job: Job, cost: Cost | None) -> float:
    if cost is None:
        return float(work_per_image(job).total)
    return cost.epoch_s * (problem.watts or 1.0)


__all__ = [
    "Choice",
    "Limits",
    "Problem",
    "Setting",
    "choose",
    "learning",
    "micro_batches",
    "nearest_feasible",
    "search",
]
