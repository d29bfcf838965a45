"""The memory bill: the most bytes a training job can hold at once, term by term. Pure arithmetic, no torch.

It describes the trainer of `edgetune.train`: eager autograd over `edgetune.model.vit` in fp32. What a block keeps for
its backward pass, per token, in units of the model's width C (M is the MLP's hidden width, 4 C as a rule):

    passes the gradient on   x 1 · q, k, v 3 · attention's output 1 · x after attention 1 · before GELU M/C
    its weights train        + normalised inputs 1 + 1 · after GELU M/C · with LayerScale + 2
    its adapters train       + normalised input 1 · two of the rank's width

besides a mean and an inverse deviation per norm and attention's log-sum-exp per head. Below the lowest trained block
nothing is kept. A peak is the largest of a few moments of a step, each the sum of what is alive then; since every term
grows with batch, tokens, trained blocks and K, so does the peak, and the plan's worst case bounds every step inside it.
Of the sets of K blocks that may be drawn, each moment takes the worst.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import msgspec

from edgetune.model.spec import Parameter, ViTSpec
from edgetune.plan import lean_bill, onnx_bill
from edgetune.plan.job import Job, entering
from edgetune.plan.workers import WORKER_BYTES
from edgetune.schema import Compute, MemoryBill

FLOAT_BYTES = 4
_INDEX_BYTES = 8

# Calibrated with benchmarks/predict_memory.py (docs/planner.md): library code and kernels paged in by the first step,
# autograd's own objects, allocator slack, the buffers of matrix kernels.
STEP_BYTES = 20 << 20
# What malloc holds beyond the lean trainer's tensors themselves. Over cached features, where no block trains, half of a
# step's code never runs; the loop around a step has some of its own. MKL keeps its packing buffers, so much for each of
# the model's width, unless it is told to give them back (`edgetune.allocator.keep_mkl_lean`).
_LEAN_HELD_SHARE, _FORWARD_SHARE, _PACKING_BYTES, _LOOP_BYTES = 0.01, 0.5, 13 << 10, 1 << 20
_ONNX_UNPACKED_SHARE = 0.5  # of half a frozen block that was made ready: what settles around it
# Of what products in bf16 cost (`FirstUse`), besides: those of the embedding, the head and the last images of an
# epoch, since a library keeps something for every shape; those of adapters; and where weights train, by the square of
# the width in units of the probe's, what it keeps to put weights into its order.
_OTHER_SHAPES_SHARE, _ADAPTER_BF16_SHARE, _WIDTH_BF16_SHARE, _PROBED_WIDTH = 0.3, 0.1, 0.06, 192
# Of what is allocated and freed within a step, what the allocator holds without being able to use it again.
SLACK_SHARE = {"lean": 0.03, "fast": 0.25}
# glibc keeps tensors of up to 32 MiB in a heap, which they fragment: by this share of what moves, up to so much. Where
# sizes are mixed (other blocks or numbers of tokens in every step, adapters' small tensors among the large), the share
# rises with the model's width (a block's gradient is as large as what it keeps of few tokens) and with adapters. Where
# blocks are run again under autograd, what comes and goes for one block settles around what the next ones need.
_HEAP_SHARE, FAST_HEAP_BYTES = 0.6, 36 << 20
_MIXED_HEAP_SHARE, _MIXED_HEAP_SHARE_OF_WIDTH, _MIXED_HEAP_BYTES = 0.15, 0.5 / 768, 96 << 20
_ADAPTERS_HEAP_SHARE, _ADAPTERS_HEAP_SHARE_OF_WIDTH, _ADAPTERS_HEAP_BYTES = 0.05, 0.5 / 768, 160 << 20  # on top
_RECOMPUTE_SHARE, _RECOMPUTE_LEAST_BYTES, _RECOMPUTE_MOST_BYTES = 0.3, 1 << 20, 20 << 20  # for each block
# How far the bill may be short, by trainer: so much, and this share of what it says above the bare process; and so much
# more where products are in bf16. Set by the plans that were short (docs/planner.md).
_SHORT = {"lean": (12 << 20, 0.05), "autograd": (32 << 20, 0.12)}
# Where autograd's tensors have other sizes in every step, or adapters' are small among large ones, glibc's heap goes on
# growing for a hundred steps and more, which the plans that the bill was set by, of eight steps, did not show (`alast`
# on W3 and W4, `lora` on W1; docs/results.md).
_SHORT_MIXED = (64 << 20, 0.25)
# oneDNN keeps something for every shape it met, of which dropped tokens make ever new ones.
_SHORT_BF16_BYTES, _SHORT_BF16_MIXED_BYTES = 12 << 20, 48 << 20
# One image file being decoded, cropped and resized, and the loader's own state.
DECODE_BYTES = 6 << 20


class FirstUse(NamedTuple):
    """What a first step brings into memory besides its tensors: code, and what libraries keep for their kernels.

    It differs with the processor's instructions, so a profile measures it (`edgetune.profile.footprint`). Without one,
    bf16 counts as where there are instructions for it, which is the dearest that was seen.
    """

    lean_bytes: int = 11 << 19  # of a step of the lean trainer
    forward_bf16_bytes: int = 18 << 20  # where no block trains, and products are in bf16
    frozen_bf16_bytes: int = 18 << 20  # where frozen blocks alone have products in bf16
    bf16_bytes: int = 40 << 20  # where all have

    @classmethod
    def of(cls, compute: Compute) -> FirstUse:
        """As a profile measured it, where it did."""
        found = {
            "lean_bytes": "lean",
            "forward_bf16_bytes": "lean-bf16-forward",
            "frozen_bf16_bytes": "lean-bf16-frozen",
            "bf16_bytes": "lean-bf16",
        }
        measured = compute.first_use_bytes
        return cls(**{name: measured[lever] for name, lever in found.items() if lever in measured})


UNMEASURED = FirstUse()


class Moment(NamedTuple):
    """What is alive at one point of a step, above the weights, in bytes."""

    name: str
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    settled: bool = False  # nothing comes and goes that the allocator would hold besides

    def slack(self, job: Job) -> int:
        """What the allocator can't reuse of what comes and goes."""
        if self.settled:
            return 0
        moving = self.activations + self.workspace
        slack = int(SLACK_SHARE[job.allocator] * moving)
        if job.allocator == "lean":
            return slack
        if job.saved_activations == "recompute":
            depth = job.spec.depth
            return min(_RECOMPUTE_LEAST_BYTES + int(_RECOMPUTE_SHARE * depth * moving), _RECOMPUTE_MOST_BYTES * depth)
        share, most_bytes = _HEAP_SHARE, FAST_HEAP_BYTES
        if job.lora_rank or _tokens_change(job):
            share, most_bytes = _MIXED_HEAP_SHARE + _MIXED_HEAP_SHARE_OF_WIDTH * job.spec.width, _MIXED_HEAP_BYTES
        if job.lora_rank:
            share += _ADAPTERS_HEAP_SHARE + _ADAPTERS_HEAP_SHARE_OF_WIDTH * job.spec.width
            most_bytes = _ADAPTERS_HEAP_BYTES
        return max(slack, min(int(share * moving), most_bytes))

    def total(self, job: Job) -> int:
        """Sum over the terms, slack included."""
        return self.gradients + self.optimizer + self.activations + self.workspace + self.slack(job)


def memory_bill(job: Job, runtime_bytes: int, first_use: FirstUse = UNMEASURED) -> MemoryBill:
    """The bill at the job's highest moment, with the most tokens that the plan allows."""
    if job.lean:
        return _lean_bill(job, runtime_bytes, first_use)
    peak = max(moments(job), key=lambda moment: moment.total(job))
    return MemoryBill(
        runtime=runtime_bytes,
        weights=weight_bytes(job),
        gradients=peak.gradients,
        optimizer=peak.optimizer,
        activations=peak.activations,
        workspace=peak.workspace + peak.slack(job) + STEP_BYTES,
        data=data_bytes(job),
    )


def expected_bill(job: Job, runtime_bytes: int, first_use: FirstUse = UNMEASURED) -> MemoryBill:
    """The bill at the tokens that a step is expected to keep."""
    pairs = zip(job.keep_max, job.keep_expected, strict=True)
    keep = tuple(min(most, math.ceil(expected)) for most, expected in pairs)
    return memory_bill(msgspec.structs.replace(job, keep_max=keep), runtime_bytes, first_use)


def most_bytes(job: Job, runtime_bytes: int, first_use: FirstUse = UNMEASURED) -> int:
    """An upper bound: the bill at the most tokens, and how far it may be short; see docs/planner.md."""
    bill = memory_bill(job, runtime_bytes, first_use)
    mixed = not job.lean and job.allocator == "fast" and (job.lora_rank > 0 or _tokens_change(job))
    least_bytes, share = _SHORT_MIXED if mixed else _SHORT["lean" if job.lean else "autograd"]
    if job.lean and _bf16(job):
        least_bytes += _SHORT_BF16_MIXED_BYTES if job.k and _tokens_change(job) else _SHORT_BF16_BYTES
    return bill.total + least_bytes + int(share * (bill.total - bill.runtime))


def filling_part(job: Job) -> int:
    """Images that pass the frozen blocks at a time while a cache is filled: as many as need no more than training does.

    Where one at a time trains, several may be prepared at a time: nothing waits for a backward pass meanwhile. How many
    does not depend on the allocator, or the slower one could be the quicker.
    """
    part = job.micro_batch_size
    if not (job.lean and job.over_features):
        return part
    job = msgspec.structs.replace(job, allocator="fast")
    most = max(_with_slack(job, moment) for moment in _lean_moments(job) if moment.name != lean_bill.FROZEN)
    most += lean_bill.image_bytes(job, part) + lean_bill.gradient_bytes(job)  # which rests meanwhile
    for filling in lean_bill.filling_parts(job):
        frozen = next(moment for moment in _lean_moments(job, filling) if moment.name == lean_bill.FROZEN)
        if _with_slack(job, frozen) + lean_bill.image_bytes(job, filling) <= most:
            return filling
    return part


def _lean_moments(job: Job, filling: int | None = None) -> list[lean_bill.Moment]:
    return onnx_bill.moments(job, filling) if job.engine == "onnx" else lean_bill.moments(job, filling)


def _held_share(job: Job) -> float:
    """Of what stays, what malloc holds besides."""
    return onnx_bill.SLACK_SHARE if job.engine == "onnx" else _LEAN_HELD_SHARE


def _with_slack(job: Job, moment: lean_bill.Moment) -> float:
    """What a moment costs beyond what is always there."""
    slack, kept = 1 + SLACK_SHARE[job.allocator], 1 + _held_share(job)
    return kept * (moment.weights + moment.saved) + slack * moment.workspace


def _gradient_at(job: Job, moment: lean_bill.Moment) -> int:
    """The one gradient that there is; none while a cache is filled, between steps."""
    rests = job.over_features and moment.name == lean_bill.FROZEN and job.engine == "torch"
    return 0 if rests else lean_bill.gradient_bytes(job)


def _lean_bill(job: Job, runtime_bytes: int, first_use: FirstUse) -> MemoryBill:
    """See `edgetune.plan.lean_bill`, and `edgetune.plan.onnx_bill` for the engine without torch."""
    slack = 1 + SLACK_SHARE[job.allocator]
    # by what it costs with its slack: the dearest moment of all, so that dearer levers can't choose a cheaper one
    peak = max(_lean_moments(job), key=lambda moment: _with_slack(job, moment) + _gradient_at(job, moment))
    weights, gradients = lean_bill.weight_bytes(job) + peak.weights, _gradient_at(job, peak)
    state = optimizer_bytes(job)
    held = int(_held_share(job) * (weights + gradients + state + peak.saved))
    return MemoryBill(
        runtime=runtime_bytes,
        weights=weights,
        gradients=gradients,
        optimizer=state,
        activations=int(peak.saved),
        workspace=int(peak.workspace * slack) + _classify_bytes(job) + _code_bytes(job, first_use) + held,
        data=lean_bill.data_bytes(job, DECODE_BYTES) + job.workers * WORKER_BYTES,
    )


def _code_bytes(job: Job, first_use: FirstUse) -> int:
    """What the first step brings in besides tensors, and what libraries keep of them."""
    if job.engine == "onnx":
        return onnx_bill.STEP_BYTES + int(_ONNX_UNPACKED_SHARE * lean_bill.unpacked_bytes(job))
    step = _first_use_bytes(job, first_use)
    if job.over_features and not job.k and not _bf16(job):  # of bf16 the forward pass was measured by itself
        step = int(_FORWARD_SHARE * step)
    exact = not _bf16(job) or bool(job.k and job.levers.precision != "bf16")  # some products are in fp32
    kept = exact and job.allocator == "fast" and not job.over_features
    return step + _LOOP_BYTES + (_PACKING_BYTES * job.spec.width if kept else 0)


def _first_use_bytes(job: Job, first_use: FirstUse) -> int:
    if not _bf16(job):
        return first_use.lean_bytes
    forward = int((1 + _OTHER_SHAPES_SHARE) * first_use.forward_bf16_bytes)
    if not job.k:
        return forward
    if job.levers.precision != "bf16" and not job.lora_rank:
        return max(forward, first_use.frozen_bf16_bytes)
    # adapters pass the gradient on through frozen blocks
    trained = _ADAPTER_BF16_SHARE if job.lora_rank else _WIDTH_BF16_SHARE * (job.spec.width / _PROBED_WIDTH) ** 2
    return int((1 + _OTHER_SHAPES_SHARE + trained) * first_use.bf16_bytes)


def _bf16(job: Job) -> bool:
    """Whether anything is multiplied in bf16."""
    frozen = bool(job.lowest) and lean_bill.compute_bytes(job) == 2
    return frozen or bool(job.k and job.levers.precision == "bf16")


def moments(job: Job) -> list[Moment]:
    """Every moment that can be the highest."""
    spec, micro = job.spec, job.micro_batch_size
    tokens = [round(count) for count in entering(spec, job.keep_max)]
    passing = [_passing_bytes(job, count) for count in tokens]
    training = [_training_bytes(job, count) for count in tokens]
    unit = [FLOAT_BYTES * micro * count * spec.width for count in tokens]  # one (B, N, C) tensor
    hidden = spec.hidden / spec.width
    gradients = _Gradients(job)
    state = optimizer_bytes(job)
    held = gradients.all if job.accumulates else 0  # of the micro-batches before
    low = job.lowest
    first = 0 if job.embeddings_trainable else low  # the lowest block that keeps anything
    # without autograd, a block's inside comes and goes; the caller holds its input
    found = [
        Moment("forward, nothing kept", held, state, 0, int(unit[index] * (5 + 2 * hidden)) + _classify_bytes(job))
        for index in range(spec.depth)
        if index < first or index == spec.depth - 1
    ]
    # evaluation: all tokens, nothing kept, no gradients; the highest block is the first that sees them all
    found.append(Moment("evaluation", 0, state, 0, int(unit[0] * (5 + 2 * hidden)) + _classify_bytes(job)))
    kept_below = 0
    for index in range(first, spec.depth):
        above = sum(job.trainable[index + 1 :])
        extra_below = sorted((training[j] for j in range(low, index + 1)), reverse=True)
        best_extra = [0, *accumulate(extra_below)]
        kept_below += passing[index]
        inside = int(unit[index] * (1 + (hidden if job.k and not job.lora_rank else 2 * hidden)))
        inside += 2 * unit[-1]  # what flows down: the gradient of the block's output and of the final tokens
        if job.saved_activations == "recompute":
            inside += _recompute_bytes(job, tokens[index])
        # the backward pass stands in block `index`; of the K drawn blocks, `j` lie above it and have their gradients
        at_most = min(job.k, above)
        at_least = max(0, job.k - len(extra_below))
        activations, grads = 0, 0
        for j in range(at_least, at_most + 1):
            grown = gradients.head + j * gradients.block + (gradients.largest if j < job.k else 0)
            alive = kept_below + best_extra[min(job.k - j, len(extra_below))]
            grown = held + gradients.largest if job.accumulates else grown
            if grown + alive >= grads + activations:
                activations, grads = alive, grown
        found.append(Moment(f"backward, block {index}", grads, state, activations, inside + _classify_bytes(job)))
    embed = unit[0] * 2 if job.embeddings_trainable else 0
    found.append(Moment("update", gradients.all, state, 0, embed))
    if job.saved_activations != "recompute" and job.allocator == "fast":
        # no gradient fits where smaller activations were in the heap: in the end each has had a place of its own
        smaller = min(1.0, gradients.largest / (hidden * max(unit)))
        left = int(smaller * (kept_below + sum(sorted(training[low:], reverse=True)[: job.k])))
        grown = gradients.head + job.k * gradients.block
        inside = int(max(unit) * (3 + 2 * hidden)) + _classify_bytes(job)
        found.append(Moment("update, heap", grown, state, left, inside, settled=True))
    # adapters are merged into new weights for the model's own file, beside what training left the allocator with
    merged = 0
    if job.lora_rank:
        merged = FLOAT_BYTES * 4 * spec.width**2 * sum(job.trainable) + max(moment.slack(job) for moment in found)
    found.append(Moment("saving", 0, state, 0, merged, settled=True))
    return found


def _tokens_change(job: Job) -> bool:
    return job.drops_tokens and min(job.keep_expected) < job.spec.patches


def weight_bytes(job: Job) -> int:
    """The model's parameters, adapters included."""
    embeddings, block, head = _counts(job.spec)
    adapters = sum(job.trainable) * lean_bill.adapter_count(job.spec, job.lora_rank)
    return FLOAT_BYTES * (embeddings + job.spec.depth * block + head + adapters)


def trainable_count(job: Job) -> int:
    """Weights that ever train."""
    embeddings, _, head = _counts(job.spec)
    return head + (embeddings if job.embeddings_trainable else 0) + blocks_trainable_count(job)


def blocks_trainable_count(job: Job) -> int:
    """Of them, those of blocks."""
    return sum(job.trainable) * _block_count(job)


def optimizer_bytes(job: Job) -> int:
    """Moments of every weight that may ever train: they stay while a block is frozen."""
    if job.lean:
        return lean_bill.state_bytes(job, trainable_count(job))
    return {"adamw": 2, "adam": 2, "sgd": 1}[job.optimizer] * FLOAT_BYTES * trainable_count(job)


def state_bytes(job: Job) -> int:
    """Of a state on disk, from which a run goes on: what trains, and the optimizer's part."""
    return optimizer_bytes(job) + FLOAT_BYTES * trainable_count(job)


def data_bytes(job: Job) -> int:
    """The batch in use and the one being fetched, what decoding needs, and the workers."""
    images = FLOAT_BYTES * job.batch_size * 3 * job.spec.image_size**2
    return (2 + job.workers) * images + DECODE_BYTES + job.workers * WORKER_BYTES


@lru_cache(maxsize=64)
def _counts(spec: ViTSpec) -> tuple[int, int, int]:
    """Weights of the embeddings, of one block, and of final norm and classifier."""
    return _count(spec.embedding_parameters()), _count(spec.block_parameters(0)), _count(spec.head_parameters())


class _Gradients:
    """Sizes of gradients, in bytes."""

    def __init__(self, job: Job) -> None:
        spec = job.spec
        embeddings, _, head = _counts(spec)
        self.head = FLOAT_BYTES * head
        self.block = FLOAT_BYTES * _block_count(job) if job.k else 0
        # other blocks than in the step before: glibc's heap keeps the places of those that were freed
        redrawn = min(job.k, sum(job.trainable) - job.k) if job.allocator == "fast" else 0
        self.all = self.head + (job.k + redrawn) * self.block
        if job.embeddings_trainable:
            self.all += FLOAT_BYTES * embeddings
        whole = FLOAT_BYTES * spec.width * spec.hidden
        # the largest single gradient, alive beside the sum it is added to
        self.largest = 0 if not job.k else FLOAT_BYTES * 3 * spec.width * job.lora_rank if job.lora_rank else whole


def _passing_bytes(job: Job, tokens: int) -> int:
    """What a block keeps so that the gradient can pass."""
    spec = job.spec
    if job.saved_activations == "recompute":
        return FLOAT_BYTES * job.micro_batch_size * tokens * spec.width
    per_token = 6 * spec.width + spec.hidden + 4 + spec.heads
    dropped = _INDEX_BYTES * tokens if job.drops_tokens else 0
    return job.micro_batch_size * (FLOAT_BYTES * tokens * per_token + dropped)


def _training_bytes(job: Job, tokens: int) -> int:
    """What a block keeps on top, so that its weights can train."""
    spec = job.spec
    if job.saved_activations == "recompute":
        return 0
    if job.lora_rank:
        per_token = spec.width + 2 * job.lora_rank
    else:
        per_token = 2 * spec.width + spec.hidden + (2 * spec.width if spec.layer_scale else 0)
    return FLOAT_BYTES * job.micro_batch_size * tokens * per_token


def _recompute_bytes(job: Job, tokens: int) -> int:
    """What one block keeps when it is run again in the backward pass."""
    again = msgspec.structs.replace(job, levers=msgspec.structs.replace(job.levers, saved_activations="full"))
    return _passing_bytes(again, tokens) + _training_bytes(again, tokens)


def _classify_bytes(job: Job) -> int:
    """Logits, their softmax and its gradient."""
    return 4 * FLOAT_BYTES * job.micro_batch_size * job.spec.classes


def _block_count(job: Job) -> int:
    """Weights of one block that train when it is drawn."""
    if job.lora_rank:
        return lean_bill.adapter_count(job.spec, job.lora_rank)
    return _counts(job.spec)[1]


def _count(parameters: Iterable[Parameter]) -> int:
    return sum(parameter.count for parameter in parameters)
