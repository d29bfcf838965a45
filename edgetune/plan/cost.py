"""What a job costs in work, time and energy: FLOPs by arithmetic, seconds from a profile's probes, joules from watts.

Each block costs three parts, as GreenTrainer splits them (arXiv 2309.13192): forward, passing the gradient on, and
weight gradients. The backward pass ends at the lowest block that trains, whose own input needs no gradient. Work is
priced by the FLOPs rate that the profile's block probes reached for that part at the nearest widths and token counts;
memory-bound work (the update) by the copy bandwidth. Without a profile seconds and joules are unknown, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from edgetune.model.spec import BlockFlops, ViTSpec
from edgetune.plan.bill import FLOAT_BYTES, memory_bill, trainable_count
from edgetune.plan.job import Job, entering, job_of
from edgetune.schema import BlockCost, Compute, Plan, Power, Predicted

MODEL = "edgetune.plan.cost/1"
Part = Literal["forward", "pass_gradient", "weight_gradient"]
# Tensors of an Adam update that pass through memory: weight, gradient, two moments read; weight, two moments written.
_UPDATE_TENSORS = 7
# The same of the lean trainer, which works in pieces that stay in cache, by the optimizer's state.
_UPDATE_PASSES = {"fp32": 7, "int8": 5, "factored": 5}
_COPY_BYTES_PER_S = 4e9  # where no probe says
# Packing a saved tensor into 8 bits and unpacking it, in copies of as many floats: 1.1 ns a number on two x86 cores.
_PACKING_COPIES = 3
# Where only a matrix product was timed: the share of its rate that a block reaches (field measurements: 0.53 to 0.73).
_BLOCK_SHARE_OF_GEMM = 0.6
# Fresh pages for every large tensor: 1.86 s a step against 1.34 s for a ViT-S at 98 px, batch 32, on two x86 cores.
_LEAN_SLOWDOWN = 1.35
_START_S = 6.0  # importing torch, reading weights, the first kernels
# Cached features read, checked and unpacked; a guess, and called one.
_FEATURE_BYTES_PER_S = 400e6
_PIXELS_PER_S = 12e6  # decode, crop, resize and normalise on one Cortex-A76-class core; a guess, and called one


class Work(NamedTuple):
    """FLOPs of one training image, by the part that decides how fast they go."""

    forward: float
    pass_gradient: float
    weight_gradient: float

    @property
    def total(self) -> int:
        """All of it."""
        return round(self.forward + self.pass_gradient + self.weight_gradient)


class Cost(NamedTuple):
    """Seconds of a run's parts; None where the profile has no probes."""

    step_s: float
    epoch_s: float
    eval_s: float
    start_s: float
    once_s: float = 0.0  # filling a feature cache

    def total_s(self, epochs: float) -> float:
        """The whole run."""
        return self.start_s + self.once_s + epochs * (self.epoch_s + self.eval_s)


# --- work ------------------------------------------------------------------------------------------------------------


def step_flops(spec: ViTSpec, plan: Plan, trained: Sequence[int], kept: Sequence[float]) -> int:
    """FLOPs per image of a step that trained the blocks `trained` and let `kept` patch tokens leave each block."""
    rank = plan.lora.rank if plan.lora else 0
    tokens = tuple(round(count) for count in entering(spec, kept))
    lean = plan.trainer == "lean"
    total = work_of(spec, tokens, tuple(trained), plan.embeddings_trainable, rank, lean).total
    return total - (feature_flops(spec, plan.lowest_trainable_block) if plan.feature_cache else 0)


def feature_flops(spec: ViTSpec, lowest: int) -> int:
    """FLOPs of passing one image up to block `lowest`, all tokens kept: the work a feature cache does once."""
    work = spec.embed_flops() + min(lowest, spec.depth - 1) * spec.block_flops(spec.tokens).forward
    return work + (round(_tail_work(spec, spec.tokens, 0).forward) if lowest == spec.depth else 0)


def work_per_image(job: Job) -> Work:
    """Expected FLOPs of one training image: over the draw of K blocks, at the tokens a step is expected to keep."""
    tokens = tuple(round(count) for count in entering(job.spec, job.keep_expected))
    candidates = [index for index, trains in enumerate(job.trainable) if trains]
    number = len(candidates)
    if job.k >= number:
        return work_of(job.spec, tokens, tuple(candidates), job.embeddings_trainable, job.lora_rank, job.lean)
    # a block trains with probability K / n; the lowest one drawn is the i-th with probability C(n-1-i, K-1) / C(n, K)
    share = job.k / number
    everything = work_of(job.spec, tokens, tuple(candidates), True, job.lora_rank, job.lean)
    nothing = work_of(job.spec, tokens, (), job.embeddings_trainable, job.lora_rank, job.lean)
    weights = nothing.weight_gradient + share * (
        sum(_work_in(job.spec, index, tokens[index], job.lora_rank, job.lean).weight_gradient for index in candidates)
    )
    if job.embeddings_trainable:
        return Work(everything.forward, everything.pass_gradient, weights)
    passing = 0.0
    for position, lowest in enumerate(candidates):
        chance = math.comb(number - 1 - position, job.k - 1) / math.comb(number, job.k)
        passing += chance * work_of(job.spec, tokens, (lowest,), False, job.lora_rank, job.lean).pass_gradient
    return Work(everything.forward, passing, weights)


def forward_flops(spec: ViTSpec) -> int:
    """FLOPs of evaluating one image, all tokens kept."""
    return spec.embed_flops() + spec.depth * spec.block_flops(spec.tokens).forward + spec.head_flops()


@lru_cache(maxsize=4096)
def work_of(
    spec: ViTSpec, tokens: tuple[int, ...], trained: tuple[int, ...], embeddings: bool, rank: int, lean: bool = False
) -> Work:
    """FLOPs per image when exactly the blocks `trained` train; `tokens` enter each block, prefix included.

    The lean trainer does no work in the last block for tokens that the classifier does not read.
    """
    forward: float = spec.embed_flops() + spec.head_flops()
    passing: float = spec.head_flops() if trained or embeddings else 0
    weights: float = spec.head_flops() + (spec.embed_flops() if embeddings else 0)
    lowest = -1 if embeddings else min(trained, default=spec.depth)
    for index, count in enumerate(tokens):
        work = _work_in(spec, index, count, rank, lean)
        forward += work.forward
        if index > lowest:
            passing += work.pass_gradient
        elif index == lowest:  # nothing below asks for the gradient of its input
            passing += work.pass_gradient - 6 * count * spec.width**2
        if index in trained:
            weights += work.weight_gradient
    return Work(forward, passing, weights)


@lru_cache(maxsize=4096)
def _block_work(spec: ViTSpec, tokens: int, rank: int) -> Work:
    """One block on one image; with adapters, their work and no weight gradients but theirs."""
    flops = spec.block_flops(tokens)
    if not rank:
        return Work(flops.forward, flops.pass_gradient, flops.weight_gradient)
    adapters = 2 * tokens * rank * 6 * spec.width
    return Work(flops.forward + adapters, flops.pass_gradient + adapters, adapters)


def _work_in(spec: ViTSpec, index: int, tokens: int, rank: int, lean: bool) -> Work:
    """What block `index` costs on one image, in the lean trainer or under autograd."""
    tail = lean and index == spec.depth - 1
    return (_tail_work if tail else _block_work)(spec, tokens, rank)


@lru_cache(maxsize=4096)
def _tail_work(spec: ViTSpec, tokens: int, rank: int) -> Work:
    """The last block, where only the tokens that the classifier reads need queries, projection and MLP."""
    read = spec.readers
    if read is None:
        return _block_work(spec, tokens, rank)
    width, hidden = spec.width, spec.hidden
    projections = 2 * tokens * 2 * width * width + 2 * read * (2 * width * width + 2 * width * hidden)
    flops = BlockFlops(projections, 4 * read * tokens * width)
    return Work(flops.forward, flops.pass_gradient, flops.weight_gradient)


# --- time ------------------------------------------------------------------------------------------------------------


class Rates:
    """FLOPs per second of each part of a block, between the shapes that were probed."""

    def __init__(self, compute: Compute) -> None:
        self.guessed = not compute.block_costs
        gemm = compute.gemm_flops.get("fp32")
        self.gemm = gemm
        self.copy_bytes_per_s = compute.copy_bytes_per_s
        self._points: dict[tuple[str, bool], list[tuple[float, float, float]]] = {}
        for cost in compute.block_costs:
            rate = _probed_rate(cost)
            if cost.lever in ("eager", "lean") and rate is not None:
                point = (math.log2(cost.width), math.log2(cost.tokens), rate)
                self._points.setdefault((cost.part, cost.lever == "lean"), []).append(point)

    @property
    def known(self) -> bool:
        """Whether anything was timed."""
        return bool(self._points) or self.gemm is not None

    def of(self, part: Part, width: int, tokens: float, *, lean: bool = False) -> float | None:
        """The rate at a width and token count: probes of that trainer, weighted by their nearness, in octaves."""
        points = self._points.get((part, lean)) or self._points.get((part, False))
        if not points:
            return None if self.gemm is None else self.gemm * _BLOCK_SHARE_OF_GEMM
        at = math.log2(width), math.log2(max(1.0, tokens))
        weighed = [
            (1 / (1e-6 + (probe_width - at[0]) ** 2 + (probe_tokens - at[1]) ** 2) ** 2, rate)
            for probe_width, probe_tokens, rate in points
        ]
        # seconds add up, so rates are averaged harmonically
        return sum(weight for weight, _ in weighed) / sum(weight / rate for weight, rate in weighed)


def _probed_rate(cost: BlockCost) -> float | None:
    """FLOPs per second a probe reached."""
    spec = ViTSpec(name="probe", width=cost.width, depth=1, heads=cost.heads, patch_size=1)
    flops = getattr(spec.block_flops(cost.tokens), cost.part) * cost.batch_size
    return flops / cost.seconds if cost.seconds > 0 else None


def time_of(job: Job, train_images: int, val_images: int, rates: Rates) -> Cost | None:
    """Expected seconds, or None where nothing was timed."""
    if not rates.known:
        return None
    spec = job.spec
    tokens = round(sum(entering(spec, job.keep_expected)) / spec.depth)
    work = work_per_image(job)
    below = feature_flops(spec, job.lowest) if job.cached else 0
    work = work._replace(forward=work.forward - below)
    parts: tuple[Part, ...] = ("forward", "pass_gradient", "weight_gradient")
    per_image = 0.0
    for part in parts:
        rate = rates.of(part, spec.width, tokens, lean=job.lean)
        flops = getattr(work, part)
        if rate is None or rate <= 0:
            return None
        if job.saved_activations == "recompute" and part == "pass_gradient":
            flops += (spec.depth - job.lowest) * spec.block_flops(tokens).forward
        per_image += flops / rate
    if job.lean and job.levers.saved_precision in ("int8", "int4"):
        per_image += _packing_s(job, rates)
    forward_rate = rates.of("forward", spec.width, spec.tokens, lean=job.lean) or math.inf
    once = 0.0
    if job.allocator == "lean":
        per_image *= _LEAN_SLOWDOWN
    passes = _UPDATE_PASSES[job.levers.optimizer_state] if job.lean else _UPDATE_TENSORS
    update = passes * FLOAT_BYTES * trainable_count(job) / (rates.copy_bytes_per_s or _COPY_BYTES_PER_S)
    read = 3 * spec.image_size**2 / _PIXELS_PER_S
    if job.cached:
        once = job.levers.feature_views * train_images * (below / forward_rate + read)
        read = FLOAT_BYTES * spec.tokens * spec.width / _FEATURE_BYTES_PER_S
    step = job.batch_size * (per_image + read) + update
    steps = -(-train_images // job.batch_size)
    evaluation = val_images * (forward_flops(spec) / forward_rate + 3 * spec.image_size**2 / _PIXELS_PER_S)
    epoch = train_images * (per_image + read) + steps * update
    return Cost(step, epoch, evaluation, _START_S, once)


def _packing_s(job: Job, rates: Rates) -> float:
    """Seconds an image for putting what waits for the backward pass into fewer bits, and back."""
    spec = job.spec
    tokens = entering(spec, job.keep_expected)
    first = 0 if job.embeddings_trainable else job.lowest
    numbers = sum(tokens[first:]) * (6 * spec.width + spec.hidden)
    return _PACKING_COPIES * FLOAT_BYTES * numbers / (rates.copy_bytes_per_s or _COPY_BYTES_PER_S)


# --- energy ----------------------------------------------------------------------------------------------------------


def watts_of(power: Power | None, compute: Compute | None, power_w: float | None) -> float | None:
    """Power while training: what the user says, else what the probes drew, else what the sensor or model says."""
    if power_w is not None:
        return power_w
    if compute is not None:
        drawn = [(cost.energy_j, cost.seconds) for cost in compute.block_costs if cost.energy_j is not None]
        if drawn and sum(seconds for _, seconds in drawn) > 0:
            return sum(joules for joules, _ in drawn if joules) / sum(seconds for _, seconds in drawn)
    if power is None:
        return None
    return power.total_corrected_w if power.total_corrected_w is not None else power.total_w


def predict(job: Job, runtime_bytes: int, cost: Cost | None, watts: float | None, epochs: float) -> Predicted:
    """The plan's prediction."""
    bill = memory_bill(job, runtime_bytes)
    epoch_s = cost.epoch_s + cost.once_s / max(1, epochs) if cost else None
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
    )


__all__ = ["Cost", "Rates", "Work", "job_of", "memory_bill", "predict", "step_flops", "time_of", "watts_of"]
