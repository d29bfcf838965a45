"""The memory bill of the lean trainer: what `edgetune.train.lean` holds, read off its code. Pure arithmetic, no torch.

Always there: the weights that train, in fp32; the others as the plan keeps them; the optimizer's state; one gradient,
as long as the largest group of weights that is updated at once (half of a block); the batch's residual stream.
On top, the largest of

    frozen blocks   a group of images passing them (to fill the cache, where there is one), with the embedding's weights
                    and those of half a block
    backward        what the blocks up to the one at hand have saved, the gradient of the stream, and the inside of one
                    half for one part of the batch
    evaluation      the stream of a part, all tokens, and the weights it passes

What a block saves for each token, in numbers, C the width and M the hidden width (`edgetune.model.block`): the input of
each half 2 C, q, k and v 3 C, attention's output C, before the GELU M; besides, exactly, two numbers for each of two
norms and one for each head. With recomputation, 2 C. The last block saves x, k and v for all tokens and the rest for
those that the classifier reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from edgetune.model.block import half_of, part_tokens
from edgetune.model.spec import ViTSpec
from edgetune.plan.job import Job, entering
from edgetune.plan.levers import frozen_arithmetic

FLOAT_BYTES = 4
SCALE_GROUP = 64  # saved values that share a scale; its four bytes add a sixteenth to eight bits
# Images of an extraction pass the frozen blocks in groups whose stream has about this size, or a quarter of a block's
# weights where that is more: a group reads all of them.
_GROUP_BYTES = 3 << 20

_CACHED_INSIDE = 1.1  # of the insides of the frozen blocks, while a cache is filled
_BF16_INSIDE = 0.6  # of the inside of a half, where products are in bf16
_RESIDENT_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1 + FLOAT_BYTES / SCALE_GROUP, "disk": 0.0}
_STATE_BYTES = {"fp32": 8.0, "int8": 2 + 8 / 256, "factored": 1 + 4 / 256 + 0.01}


def packed_bytes(count: float, precision: str) -> float:
    """Memory of `count` saved numbers."""
    bits = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}[precision]
    scales = FLOAT_BYTES / SCALE_GROUP if bits < 16 else 0
    return count * (bits / 8 + scales)


def state_bytes(job: Job, trainable: int) -> int:
    """The optimizer's state for so many weights."""
    kind = job.levers.optimizer
    if kind == "sgd-plain":
        return 0
    if kind == "sgd":
        return FLOAT_BYTES * trainable
    precision = "fp32" if kind == "adam" else job.levers.optimizer_state
    thin = 0  # factors are so thin that their rows and columns count
    if job.lora_rank and precision == "factored":
        thin = FLOAT_BYTES * sum(job.trainable) * (6 * job.spec.width + 4 * job.lora_rank)
    return int(_STATE_BYTES[precision] * trainable) + thin


def weight_bytes(job: Job) -> int:
    """Weights that stay in memory: what trains in fp32, the rest as it is kept."""
    spec, frozen = job.spec, _frozen_blocks(job)
    matrices, vectors = _block_counts(spec)
    head = sum(parameter.count for parameter in spec.head_parameters())
    each = _RESIDENT_BYTES[job.levers.frozen_weights]
    kept = frozen * (matrices * each + (0 if each == 0 else FLOAT_BYTES * vectors))
    trained = (spec.depth - frozen) * (matrices + vectors) + head
    if job.lora_rank:
        trained += sum(job.trainable) * adapter_count(spec, job.lora_rank)
    return int(FLOAT_BYTES * (trained + (_embedding_count(spec) if job.embeddings_trainable else 0)) + kept)


def passing_bytes(job: Job) -> int:
    """Weights in memory only while images pass the frozen part: the embedding, and what `_ready_bytes` says."""
    return 0 if job.embeddings_trainable else FLOAT_BYTES * _embedding_count(job.spec) + _ready_bytes(job)


def _ready_bytes(job: Job) -> int:
    """Half a frozen block made ready for the arithmetic; with adapters also attention's matrices, corrected."""
    corrected = 4 * job.spec.width**2 if job.lora_rank else 0
    return unpacked_bytes(job) + compute_bytes(job) * corrected


def unpacked_bytes(job: Job) -> int:
    """Half a frozen block in the arithmetic's type, where it is kept in another."""
    compute = compute_bytes(job)
    if not _frozen_blocks(job) or _RESIDENT_BYTES[job.levers.frozen_weights] == compute:
        return 0
    return compute * max(_half_counts(job.spec).values())


def compute_bytes(job: Job) -> int:
    """Bytes of a number in the arithmetic with frozen weights."""
    return 2 if frozen_arithmetic(job.levers, adapters=job.lora_rank > 0) == "bf16" else 4


def gradient_bytes(job: Job) -> int:
    """The largest group that is updated at once."""
    spec = job.spec
    groups = [sum(parameter.count for parameter in spec.head_parameters())]
    if any(job.trainable):
        groups += [adapter_count(spec, job.lora_rank)] if job.lora_rank else _half_counts(spec).values()
    if job.embeddings_trainable:
        groups.append(_embedding_count(spec))
    return FLOAT_BYTES * max(groups)


def saved_bytes(job: Job, index: int) -> float:
    """What block `index` keeps of a batch, at the most tokens the plan lets into it."""
    spec, levers = job.spec, job.levers
    tokens, leaving = [*entering(spec, job.keep_max), 0.0][index : index + 2]
    recompute = index in job.recomputed
    read = spec.readers if index == spec.depth - 1 else None
    inputs, products = saved_numbers(spec, index, tokens)
    exact = tokens * (4 + spec.heads) if read is None else tokens * 2 + read * (2 + spec.heads)
    if recompute:
        products = exact = 0
    # what a product in bf16 gave is kept in bf16 where nothing smaller is asked for
    of_products = "bf16" if (levers.precision, levers.saved_precision) == ("bf16", "fp32") else levers.saved_precision
    positions = 8 * leaving if job.drops_tokens else 0
    large = packed_bytes(inputs, levers.saved_precision) + packed_bytes(products, of_products)
    return job.batch_size * (large + FLOAT_BYTES * exact + positions)


def saved_numbers(spec: ViTSpec, index: int, tokens: float) -> tuple[float, float]:
    """Numbers of one image that block `index` saves in the plan's precision: of its halves' inputs, and of the rest."""
    width, hidden = spec.width, spec.hidden
    read = spec.readers if index == spec.depth - 1 else None
    if read is None:
        return tokens * 2 * width, tokens * (4 * width + hidden)
    return (tokens + read) * width, tokens * 2 * width + read * (2 * width + hidden)


def group_size(spec: ViTSpec, part: int) -> int:
    """Images that pass the frozen blocks together while a cache is filled: whole parts."""
    wanted_bytes = max(_GROUP_BYTES, FLOAT_BYTES * sum(_block_counts(spec)) // 4)
    return max(part, wanted_bytes // (FLOAT_BYTES * spec.tokens * spec.width) // part * part)


class Moment(NamedTuple):
    """What one point of a run holds besides what is always there, in bytes."""

    name: str
    weights: int  # that pass, see `passing_bytes`
    saved: float
    workspace: float


FROZEN = "frozen blocks"  # the moment's name


def filling_parts(job: Job) -> Iterator[int]:
    """Images that may pass the frozen blocks at a time while a cache is filled, beyond those that train at a time."""
    size = part_tokens(job.spec.width) // job.spec.tokens
    while size > job.micro_batch_size:
        yield size
        size //= 2


def moments(job: Job, filling: int | None = None) -> list[Moment]:
    """Every moment that can be the highest; `filling` images pass the frozen blocks together; None: a part's."""
    spec, part = job.spec, job.micro_batch_size
    filling = part if filling is None else filling
    tokens = entering(spec, job.keep_max)
    first = 0 if job.embeddings_trainable else job.lowest
    row = FLOAT_BYTES * spec.width
    inside = float(6 * spec.width + 4 * spec.hidden)  # numbers a token, of one half at its highest
    if job.levers.precision == "bf16":
        inside *= _BF16_INSIDE
    passing = FLOAT_BYTES * spec.tokens * (4 * spec.width + 2 * spec.hidden)  # an image
    ranked = passing  # the same where the attention that patches receive from each other ranks them
    if job.drops_tokens and not spec.class_token:
        ranked = max(passing, FLOAT_BYTES * spec.tokens * (5 * spec.width + 2 * spec.heads * spec.tokens))
    weights = passing_bytes(job)
    # blocks with adapters are frozen themselves: they are made ready at every step
    above = (_ready_bytes(job) if job.lora_rank else 0) if job.over_features else weights
    found: list[Moment] = []
    if first > 0:
        group = group_size(spec, filling) if job.cached else job.batch_size
        inside_bytes = float(filling * ranked)
        if job.cached and job.allocator == "fast":
            # glibc, left to itself there (`edgetune.allocator`), keeps what every size of a block's insides took
            inside_bytes *= _CACHED_INSIDE
        inside_bytes *= _BF16_INSIDE if compute_bytes(job) == 2 else 1.0
        found.append(Moment(FROZEN, weights, 0.0, row * spec.tokens * group + inside_bytes))
    kept = 0.0
    for index in range(first, spec.depth):
        stream = job.batch_size * row * tokens[index]
        kept += saved_bytes(job, index)
        # the stream's gradient, and what a dropped stream leaves beside its successor
        step = 2 * stream + FLOAT_BYTES * part * tokens[index] * inside
        found.append(Moment(f"backward, block {index}", above, kept, step))
    stream = FLOAT_BYTES * spec.tokens * job.batch_size * spec.width
    found.append(Moment("evaluation", weights, 0.0, stream + part * passing))
    return found


def data_bytes(job: Job, decode_bytes: int) -> int:
    """Images of a batch, or of a part of one where a cache is filled from them, and what decoding needs."""
    return image_bytes(job, job.micro_batch_size if job.over_features else job.batch_size) + decode_bytes


def image_bytes(job: Job, images: int) -> int:
    """So many images, those at hand and those being read."""
    return 2 * FLOAT_BYTES * images * 3 * job.spec.image_size**2


def adapter_count(spec: ViTSpec, rank: int) -> int:
    """Weights of a block's adapters: in → rank → out, on the joint q, k, v projection and on the output projection."""
    return rank * (spec.width + 3 * spec.width) + rank * (spec.width + spec.width)


def _frozen_blocks(job: Job) -> int:
    """Blocks whose own weights never train; adapters change nothing about that."""
    return job.spec.depth if job.lora_rank else sum(not trains for trains in job.trainable)


@lru_cache(maxsize=64)
def _block_counts(spec: ViTSpec) -> tuple[int, int]:
    """Numbers in the matrices and in the vectors of a block."""
    matrices = vectors = 0
    for parameter in spec.block_parameters(0):
        if len(parameter.shape) > 1:
            matrices += parameter.count
        else:
            vectors += parameter.count
    return matrices, vectors


@lru_cache(maxsize=64)
def _half_counts(spec: ViTSpec) -> dict[str, int]:
    """Numbers in each half of a block."""
    halves = {"attention": 0, "mlp": 0}
    for parameter in spec.block_parameters(0):
        halves[half_of(parameter.name)] += parameter.count
    return halves


@lru_cache(maxsize=64)
def _embedding_count(spec: ViTSpec) -> int:
    return sum(parameter.count for parameter in spec.embedding_parameters())
