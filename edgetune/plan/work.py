"""What a job costs in work: FLOPs, by arithmetic.

Each block costs three parts, as GreenTrainer splits them (arXiv 2309.13192): forward, passing the gradient on, and
weight gradients. The backward pass ends at the lowest block that trains, whose own input needs no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from edgetune.model.spec import BlockFlops, ViTSpec
from edgetune.plan.job import Job, entering
from edgetune.schema import Plan


class Work(NamedTuple):
    """FLOPs of one training image, by the part that decides how fast they go."""

    forward: float
    pass_gradient: float
    weight_gradient: float

    @property
    def total(self) -> int:
        """All of it."""
        return round(self.forward + self.pass_gradient + self.weight_gradient)


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


@lru_cache(maxsize=1024)
def tail_share(spec: ViTSpec, tokens: int) -> float:
    """Work of the lean trainer's last block by that of a whole one."""
    return _tail_work(spec, tokens, 0).forward / spec.block_flops(tokens).forward
