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
training and stopping early lose most, K least because blocks take turns. Ties go to fewer joules, then to less work; of
the forms of one setting, to the first that costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Literal, NamedTuple

import msgspec

from edgetune.model.spec import ViTSpec
from edgetune.plan.bill import UNMEASURED, FirstUse, most_bytes
from edgetune.plan.cost import Cost, time_of
from edgetune.plan.engines import economical
from edgetune.plan.job import Job, job_for
from edgetune.plan.levers import Levers, economies, part_size, recomputed_blocks
from edgetune.plan.methods import BAND_STEPS, Method
from edgetune.plan.rates import Rates
from edgetune.plan.work import work_per_image
from edgetune.schema import Engine, NearestFeasible

_FOUR_BITS = 0.98  # of the learning, where saved tensors have no more
_ROUNDING = 1 + 1e-9  # so that a cap named as feasible is feasible when it is asked for
_SLACK = 1e-11  # so that no sum in another order is above a cap
_LEAST_EPOCHS = 0.1  # of a run worth its start: caps with room for fewer are infeasible


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
    file_bytes: float | None = None  # of an image file, on average
    first_use: FirstUse = UNMEASURED
    margin_bytes: int = 0  # that the bare process may take beyond `runtime_bytes`
    engine: Engine = "torch"
    evaluations: float = 1.0  # an epoch, on average
    hurried: bool = False  # a cap on time or energy may end the run

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
        if "token_min" in self.method.given:
            bands = [band for band in bands if band >= self.method.band[0]]
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
        first = 0 if self.method.embeddings_trainable else self.spec.depth - setting.trained
        return [
            setting._replace(levers=levers)
            for levers in forms
            if levers == setting.levers
            or levers.recompute_share == 1  # a part of few blocks may be all of them, which is a form of its own
            or recomputed_blocks(levers, first, self.spec.depth).stop < self.spec.depth
        ]

    def hasty(self, setting: Setting) -> list[Setting]:
        """The setting with what never trains in bf16, where caps may end a run and the probes say it is faster so.

        It needs more memory (`FirstUse`), so where all epochs fit anyway, or nothing caps them, nobody asked for it.
        """
        ours = self.engine == "torch" and self.method.searched and setting.levers.trainer == "lean"
        frozen = setting.trained < self.spec.depth and not self.method.embeddings_trainable
        if not (ours and frozen and self.hurried and self.rates) or "frozen_precision" in self.method.given:
            return []
        if not self.rates.quicker_in_bf16(self.spec.width, self.spec.tokens, self.whole):
            return []
        return [setting._replace(levers=msgspec.structs.replace(setting.levers, frozen_precision="bf16"))]

    @property
    def least_epochs(self) -> float:
        """Of the shortest run: whole steps."""
        steps = math.ceil(self.train_images / self.batch_size)
        return math.ceil(_LEAST_EPOCHS * steps) / steps

    @property
    def whole(self) -> int:
        """Images that pass a block at a time where memory asks for no fewer."""
        if not self.in_parts:
            return self.batch_size
        return part_size(self.spec, self.batch_size, self.method.levers.part_tokens)

    @property
    def in_parts(self) -> bool:
        """Whether a batch passes in parts though memory does not ask for it.

        They keep memory small for little time; a run that a cap on time or energy may end has none to give.
        """
        given = "part_tokens" in self.method.given
        return self.method.levers.trainer == "lean" and (given or not self.hurried)

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
        """The most that the process tree may take."""
        return most_bytes(job, self.runtime_bytes, self.first_use) + self.margin_bytes

    def least_job(self, setting: Setting) -> Job:
        """The job of a setting that needs least memory; see `_Sizes.least`."""
        return _Sizes(self, setting).least()[0]

    def cost(self, job: Job) -> Cost | None:
        """Predicted seconds."""
        if self.rates is None:
            return None
        return time_of(job, self.train_images, self.val_images, self.rates, self.file_bytes, self.evaluations)

    def price(self, job: Job, cost: Cost | None) -> float:
        """What an epoch takes in joules; in seconds or FLOPs of an image where those are unknown."""
        if cost is None:
            return float(work_per_image(job).total)
        return cost.epoch_s * (self.watts or 1.0)

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


class _Sizes:
    """A setting with micro-batches of any size: the jobs, their peaks and what they cost, each reckoned once."""

    def __init__(self, problem: Problem, setting: Setting) -> None:
        self._problem, self.setting = problem, setting
        self._known: dict[int, tuple[Job, int]] = {}
        self._costs: dict[int, Cost | None] = {}
        self._whole = problem.whole
        # sizes that a micro-batch may have, ascending
        self._sizes = [size for size in micro_batches(problem.batch_size) if size <= self._whole]

    def at(self, micro_batch_size: int) -> tuple[Job, int]:
        """The job with micro-batches of that size, and its peak."""
        found = self._known.get(micro_batch_size)
        if found is None:
            job = self._problem.job(self.setting, micro_batch_size)
            found = self._known[micro_batch_size] = job, self._problem.peak_bytes(job)
        return found

    def cost(self, job: Job) -> Cost | None:
        """What one of the jobs takes."""
        size = job.micro_batch_size
        if size not in self._costs:
            self._costs[size] = self._problem.cost(job)
        return self._costs[size]

    def least(self) -> tuple[Job, int]:
        """The job that needs least memory.

        One image at a time, as a rule; but a batch passed whole does not hold gradients beside the next part's
        activations, which can be the smaller bill where weights outweigh activations.
        """
        whole, single = self.at(self._whole), self.at(1)
        return whole if whole[1] <= single[1] else single

    def least_within(self, limits: Limits) -> int | None:
        """The peak of the job that needs least memory of those that are quick enough; None where none is.

        One image at a time can be too slow; where the whole is too, so is what lies between.
        """
        least, peak = self.least()
        if self._quick(least, limits):
            return peak
        if not self._quick(self.at(self._whole)[0], limits):
            return None
        found = (self.at(size) for size in {*self._sizes, self._whole})
        return min(peak for job, peak in found if self._quick(job, limits))

    def _quick(self, job: Job, limits: Limits) -> bool:
        """Whether the shortest run is within the caps on time and energy."""
        one_s, one_j = self.shortest(job)
        return within(limits.time_s, one_s) and within(limits.energy_j, one_j)

    def shortest(self, job: Job) -> tuple[float | None, float | None]:
        """Seconds and joules of the shortest run; None where they are unknown."""
        cost, watts = self.cost(job), self._problem.watts
        seconds = cost.needed_s(self._problem.least_epochs) if cost else None
        return seconds, None if seconds is None or watts is None else seconds * watts

    def largest(self, cap_bytes: int | None) -> Job | None:
        """The job with the largest micro-batch that fits; None where none does."""
        if cap_bytes is None:
            return self.at(self._whole)[0]
        if self.least()[1] > cap_bytes:
            return None
        sizes = self._sizes
        if self.at(sizes[-1])[1] <= cap_bytes:
            return self.at(sizes[-1])[0]
        low, high = 0, len(sizes) - 2  # of those that are passed in parts; among them memory is monotone
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.at(sizes[middle])[1] <= cap_bytes else (low, middle - 1)
        return self.at(sizes[low])[0]


def search(problem: Problem, limits: Limits) -> Choice | None:
    """The best choice inside the limits, or None.

    The lean allocator needs less memory and more time, so it is taken only where it lets a plan learn more: never,
    where memory turned nothing down.
    """
    fast, turned_down = _search(problem._replace(allocator="fast"), limits)
    if not turned_down:
        return fast
    lean, _ = _search(problem._replace(allocator="lean"), limits)
    return lean if fast is None or (lean is not None and lean.learning > fast.learning) else fast


def _search(problem: Problem, limits: Limits) -> tuple[Choice | None, bool]:
    """The best choice with one allocator, and whether memory turned anything down that might have learned more."""
    ranked = []
    for order, setting in enumerate(problem.settings()):
        bound = problem.learning(problem.job(setting, problem.whole), problem.epochs)
        ranked.append((-bound, order, setting))
    ranked.sort(key=lambda entry: entry[:2])
    best: Choice | None = None
    turned_down = False
    for negative, _, setting in ranked:
        if best is not None and -negative < best.learning:
            break
        sized = [_Sizes(problem, form) for form in problem.thrifty(setting)]
        cap_bytes = limits.memory_bytes
        if cap_bytes is not None and sized[-1].least()[1] > cap_bytes:
            turned_down = True
            continue
        hasty = [_Sizes(problem, form) for form in problem.hasty(setting)]
        if hasty:
            exact = sized[0].largest(cap_bytes)
            found = None if exact is None else _chosen(problem, sized[0], exact, limits)
            if found is None or found.epochs < problem.epochs:
                sized[1:1] = hasty
        for sizes in sized:
            job = sizes.largest(cap_bytes)
            turned_down = turned_down or job is None or job.micro_batch_size < problem.whole
            found = None if job is None else _chosen(problem, sizes, job, limits)
            if found and (best is None or (found.learning, -found.price) > (best.learning, -best.price)):
                best = found
            if found and found.learning == -negative and found.job.micro_batch_size == problem.whole:
                break  # a form that saves more learns no more and is there for caps, unless this one splits batches
    return best, turned_down


def _chosen(problem: Problem, sizes: _Sizes, job: Job, limits: Limits) -> Choice | None:
    """A job with the most epochs that fit; None where not even the shortest run does."""
    cost = sizes.cost(job)
    epochs = _epochs_within(problem, cost, limits)
    if epochs < problem.least_epochs:
        return None
    return Choice(
        job=job,
        setting=sizes.setting,
        epochs=epochs,
        cost=cost,
        learning=problem.learning(job, epochs),
        price=problem.price(job, cost),
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
        price=problem.price(job, cost),
    )


def nearest_feasible(problem: Problem, several: Sequence[Limits]) -> list[NearestFeasible]:
    """The smallest value of each cap that admits a plan, the other caps held; None where no value does.

    Of each of several limits: every form is reckoned once for all of them.
    """
    found = [_Nearest(limits) for limits in several]
    # the lean one needs least memory, the fast one least time: without a cap on time the first alone decides
    timed = any(limits.time_s is not None or limits.energy_j is not None for limits in several)
    forms = [form for setting in problem.settings() for form in (*problem.thrifty(setting), *problem.hasty(setting))]
    for allocator, form in product(ALLOCATORS if timed else ALLOCATORS[:1], forms):
        sizes = _Sizes(problem._replace(allocator=allocator), form)
        for nearest in found:
            nearest.look_at(sizes)
    return [NearestFeasible(nearest.memory_bytes, nearest.energy_j, nearest.time_s) for nearest in found]


class _Nearest:
    """The smallest value of each cap among the forms looked at, the others held."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._timed = limits.time_s is not None or limits.energy_j is not None
        self.memory_bytes: int | None = None
        self.energy_j: float | None = None
        self.time_s: float | None = None

    def look_at(self, sizes: _Sizes) -> None:
        """At one form, in parts of any size."""
        limits = self._limits
        if self.memory_bytes is None or sizes.least()[1] < self.memory_bytes:
            self.memory_bytes = min(filter(None, (self.memory_bytes, sizes.least_within(limits))), default=None)
        fitting = sizes.largest(limits.memory_bytes) if self._timed else None
        if fitting is None:
            return
        one_s, one_j = sizes.shortest(fitting)
        if one_j is not None and within(limits.time_s, one_s):
            self.energy_j = min(self.energy_j or math.inf, one_j * _ROUNDING)
        if one_s is not None and within(limits.energy_j, one_j):
            self.time_s = min(self.time_s or math.inf, one_s * _ROUNDING)


def within(cap: float | None, value: float | None) -> bool:
    """Whether a value keeps to a cap; one that is unknown does."""
    return cap is None or value is None or value <= cap


@lru_cache(maxsize=64)
def micro_batches(batch_size: int) -> tuple[int, ...]:
    """Sizes that split a batch into equal parts, as nearly as it goes, ascending."""
    root = min(batch_size, math.isqrt(batch_size) + 1)
    few_parts = {math.ceil(batch_size / parts) for parts in range(1, root + 1)}
    small = {size for size in range(1, root + 1) if -(-batch_size // -(-batch_size // size)) == size}
    return tuple(sorted(few_parts | small))


def _epochs_within(problem: Problem, cost: Cost | None, limits: Limits) -> float:
    """Epochs that time and energy allow, at most the wanted number; the last may be cut short."""
    if cost is None:
        return problem.epochs
    seconds = math.inf if limits.time_s is None else limits.time_s
    if limits.energy_j is not None and problem.watts is not None:
        seconds = min(seconds, limits.energy_j / problem.watts)
    if seconds == math.inf or cost.needed_s(problem.epochs) <= seconds:
        return problem.epochs
    seconds = seconds * (1 - _SLACK) - cost.reserve_s
    often = _epochs_for(cost, seconds, cost.evaluations * cost.eval_s)
    if cost.evaluations * often >= 1:
        return often
    return _epochs_for(cost, seconds - cost.eval_s, 0.0)  # the one at the end, whenever that is


def _epochs_for(cost: Cost, seconds: float, evaluating_s: float) -> float:
    """Epochs that fit so many seconds, with so much evaluation in each."""
    each_s = cost.epoch_s + cost.save_s + evaluating_s
    left_s = seconds - cost.start_s - cost.val_once_s - cost.first_step_s
    filling_s = each_s + cost.view_s  # an epoch that also fills a view of the cache
    if left_s >= cost.views * filling_s:
        return (left_s - cost.views * cost.view_s) / each_s
    if left_s >= filling_s:
        return _stretched(left_s, cost, each_s)
    # saved at its end, whenever that is
    return _stretched(left_s - cost.save_s, cost, cost.epoch_s + evaluating_s)


def _stretched(seconds: float, cost: Cost, each_s: float) -> float:
    """Epochs that fit so many seconds, where images are prepared for a stretch of an epoch at a time."""
    epochs = 0.0
    for part in (1.0, cost.stretch):
        count = max(0, math.floor(seconds / (part * (cost.view_s + each_s))))
        epochs, seconds = epochs + count * part, seconds - count * part * (cost.view_s + each_s)
    begun = max(0.0, seconds - cost.stretch * cost.view_s) / each_s
    return epochs + min(begun, math.ceil(epochs + _SLACK) - epochs)


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
    "within",
]
