"""Seconds of a job's pieces on a machine: blocks by its probes, what goes over memory and disk by their rates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby

from edgetune.plan.bill import FLOAT_BYTES, blocks_trainable_count, optimizer_bytes, state_bytes, trainable_count
from edgetune.plan.cache import planned_cache
from edgetune.plan.job import Job, entering
from edgetune.plan.lean_bill import saved_numbers
from edgetune.plan.levers import frozen_arithmetic
from edgetune.plan.rates import Part, Rates, Way
from edgetune.plan.tensors import COPY_BYTES_PER_S
from edgetune.plan.work import tail_share

# Of a block for one part of a batch, read off `edgetune.train.lean`: tensors of a row's width put away and read back,
# small ones (in fp32), inputs of halves that are run again.
_LARGE_PUTS, _SMALL_PUTS, _PUTS_OF_INPUTS = 5, 5, 2
_READ_COPIES = 2.0  # of the file cache, where no probe says
_MERGE_COPIES = {"fp32": 2.0, "bf16": 6.0}  # attention's matrices with their adapters added
_LOWEST_SHARE = 0.75  # of passing the gradient on, in a block with adapters whose input needs none
# Of a block's forward pass, for the small products and sums of its adapters: they grow with the width, and a block with
# its square. The lean trainer adds adapters to the weights before a forward pass instead (`merging_s`).
_ADAPTER_SHARE, _ADAPTER_WIDTH = 0.08, 192
# Blocks in a run, against their probes: medians of 59 runs. Between them lie other blocks, updates and the loop; over
# cached features malloc gives memory back whenever a step has ended, and finds it again in the next.
_IN_A_RUN, _OVER_FEATURES = 1.1, 1.2
_ONNX_TIGHT = 1.1  # a guess
_ZEROED_COPIES = 0.5  # of a gradient that sums begin with
_STEP_S = 1e-3  # around a step: the batch put together, meters, log, governor
# A first step brings kernels into memory, and the pages of the optimizer's state and of the weights: in seconds, and in
# how often they are touched for the first time. Fresh pages where no probe says: in copies.
_FIRST_STEP_S, _FRESH_TIMES, _FRESH_COPIES = 0.1, {"lean": 1.0, "autograd": 3.0}, 4.0
_ADDED_COPIES = 1.5  # autograd adds the gradients of a batch's further parts to the first one's
_START_S, _IMPORT_S = 1.0, 4.0  # of a process; importing torch, where no probe says
_WRITE_BYTES_PER_S = 50e6  # of a slow disk, where no probe says
_FEATURE_COPIES = {"fp16": 13.0, "int8": 5.0}  # cached features read, checked and unpacked: in copies of them
# Decode, crop, resize and normalise on one Cortex-A76-class core, where no probe says; a guess, and called one.
_VALUES_PER_S = 12e6
_BYTES_A_VALUE = 0.1  # of a JPEG


class Clock:
    """Seconds of a job's pieces, by the rates of the machine."""

    def __init__(self, job: Job, rates: Rates) -> None:
        self.job, self.rates = job, rates
        self._images = job.batch_size / -(-job.batch_size // job.micro_batch_size)
        self._tokens = [round(count) for count in entering(job.spec, job.keep_expected)]
        self._way, self._frozen_way = _ways(job)
        self._in_a_run = _OVER_FEATURES if job.lean and job.over_features else _IN_A_RUN
        self._copy_bytes_per_s = rates.compute.copy_bytes_per_s or COPY_BYTES_PER_S
        self._fresh_bytes_per_s = rates.compute.fresh_bytes_per_s or self._copy_bytes_per_s / _FRESH_COPIES
        self._tensors = rates.tensors
        self._write_bytes_per_s = rates.compute.write_bytes_per_s or _WRITE_BYTES_PER_S
        self._frozen_type = frozen_arithmetic(job.levers, adapters=job.lora_rank > 0)

    def _block(
        self, part: Part, index: int, images: float, way: Way, share: float = 1.0, *, alone: bool = False
    ) -> float:
        """A part of block `index`, the tail with as little work as it has; `alone`: no other part shares its MLP."""
        spec, tokens, seldom = self.job.spec, self._tokens[index], 1.0
        if self.job.lean and index == spec.depth - 1:
            share *= tail_share(spec, tokens)
            seldom = 1.0 if alone else self._tail_mlps(tokens, images)
        return self._timed(part, way, tokens, images, share, seldom)

    def _timed(
        self, part: Part, way: Way, tokens: float, images: float, share: float = 1.0, seldom: float = 1.0
    ) -> float:
        """A part of a block, with the allocator that the job has."""
        width = self.job.spec.width
        found = self.rates.seconds(part, way, width, tokens, images, share, seldom)
        assert found is not None  # `known` was asked
        if self.job.allocator == "lean":
            onnx = self.job.engine == "onnx"  # which has memory of its own
            found *= _ONNX_TIGHT if onnx else self.rates.tight(part, way, width)
        return self._in_a_run * found

    def _tail_mlps(self, tokens: int, images: float) -> float:
        """How often the last MLP is run for a part of a batch: it gets as many tokens together as attention did."""
        readers = self.job.spec.readers
        if readers is None:
            return 1.0
        together = max(1.0, images * tokens // readers)
        parts = max(1, round(self.job.batch_size / images))
        return math.ceil(self.job.batch_size / together) / parts

    def frozen(self, images: float) -> float:
        """The embedding and the blocks below the lowest trained one on so many images."""
        return self._embedding(images) + self._run(range(self.job.lowest), self._tokens, images, self._frozen_way)

    def evaluating(self, images: float) -> float:
        """What lies above them, on so many images, all tokens kept."""
        spec = self.job.spec
        alone = self.job.engine == "torch"  # there each part of a batch is passed through all blocks
        tokens = [spec.tokens] * spec.depth
        return self._run(range(self.job.lowest, spec.depth), tokens, images, self._way, alone=alone)

    def _run(self, blocks: range, tokens: list[int], images: float, way: Way, *, alone: bool = False) -> float:
        """Forward through some blocks; neighbours that get as many tokens take as long."""
        tail = self.job.spec.depth - 1 if self.job.lean else -1
        seconds = 0.0
        for count, equal in groupby([tokens[index] for index in blocks if index != tail]):
            seconds += len(list(equal)) * self._timed("forward", way, count, images)
        if tail in blocks:
            seconds += self._block("forward", tail, images, way, alone=alone)
        return seconds

    def _embedding(self, images: float) -> float:
        spec = self.job.spec
        block = self._timed("forward", self._frozen_way, spec.tokens, images)
        return block * spec.embed_flops() / spec.block_flops(spec.tokens).forward

    def forward(self) -> float:
        """Forward through one part of a batch."""
        return self.below() + self.above(range(self.job.lowest, self.job.spec.depth))

    def below(self) -> float:
        """Of it, what lies below the lowest trained block; nothing where that is cached."""
        return 0.0 if self.job.over_features else self.frozen(self._images)

    def above(self, blocks: range) -> float:
        """Of it, some of the blocks from the lowest trained one on."""
        adapters = 1.0 + (self._adapter_share if self.job.lora_rank and not self.job.lean else 0.0)
        return adapters * self._run(blocks, self._tokens, self._images, self._way)

    @property
    def _adapter_share(self) -> float:
        return _ADAPTER_SHARE * _ADAPTER_WIDTH / self.job.spec.width

    def backward(self) -> float:
        """Backward through one part of a batch, on average over the draws of K blocks."""
        blocks = sum(passing + weights for _, passing, weights in self.backward_blocks())
        return blocks + (self.embedding_backward() if self.job.embeddings_trainable else 0.0)

    def backward_blocks(self) -> Iterator[tuple[int, float, float]]:
        """Of it, each block that may train: passing the gradient on (what is run again included), weight gradients."""
        job, images = self.job, self._images
        trained = [index for index, trains in enumerate(job.trainable) if trains]
        number, k = len(trained), min(job.k, len(trained))
        # as in `work_per_image`
        lowest = [math.comb(number - 1 - place, k - 1) / math.comb(number, k) for place in range(number)]
        below, recomputed = 0.0, job.recomputed
        for place, index in enumerate(trained):
            passes = 1.0 if job.embeddings_trainable else below
            below += lowest[place]
            passing = passes * self._block("pass_gradient", index, images, self._way)
            if not job.embeddings_trainable:  # nothing below asks for the gradient of its input
                share = _LOWEST_SHARE if job.lora_rank else 1.0  # norms that train ask for all but their input's
                passing += lowest[place] * self._block("pass_gradient", index, images, self._way, share)
            if index in recomputed:
                passing += min(1.0, passes + lowest[place]) * self._block("forward", index, images, self._way)
            if job.lora_rank:
                weights = 2 * self._adapter_share * self._block("forward", index, images, self._way)
            else:
                weights = k / number * self._block("weight_gradient", index, images, self._way)
            yield index, passing, weights

    def embedding_backward(self) -> float:
        """Weight gradients of the embedding, of one part of a batch."""
        return self._embedding(self._images)

    def packing_s(self) -> float:
        """Putting what a batch leaves for the backward pass away, and back, on average over the draws of K blocks."""
        job = self.job
        if not job.lean:
            return 0.0
        put, exactly = self._tensors.keeping(job.levers.saved_precision), self._tensors.keeping("fp32")
        seconds, recomputed = 0.0, job.recomputed
        for index, chance in self._kept():
            inputs, products = (job.batch_size * count for count in saved_numbers(job.spec, index, self._tokens[index]))
            small_s = exactly.seconds(0, job.parts * _SMALL_PUTS)
            if index in recomputed:
                kept_s = put.seconds(inputs, job.parts * _PUTS_OF_INPUTS)
                kept_s += exactly.seconds(inputs + products, job.parts * _LARGE_PUTS)
            else:
                kept_s = put.seconds(inputs + products, job.parts * _LARGE_PUTS)
            seconds += chance * (kept_s + small_s)
        return seconds

    def _kept(self) -> Iterator[tuple[int, float]]:
        """Blocks that keep something, and in what share of the steps: those from the lowest one that was drawn on."""
        job = self.job
        trained = [index for index, trains in enumerate(job.trainable) if trains]
        number, k = len(trained), min(job.k, len(trained))
        for index in range(0 if job.embeddings_trainable else job.lowest, job.spec.depth):
            above = sum(place > index for place in trained)
            never = 0.0 if job.embeddings_trainable or not number else math.comb(above, k) / math.comb(number, k)
            yield index, 1.0 - never

    def update_s(self, parts: int) -> float:
        """The optimizer, autograd adding the gradients of its parts, and what surrounds a step."""
        job = self.job
        # the classifier is updated in every step, and so are embeddings that train
        resting = 1 - job.k / sum(job.trainable) if job.k else 0.0
        weights = trainable_count(job) - resting * blocks_trainable_count(job)
        price = self._tensors.updating(job.levers.trainer, job.levers.optimizer, job.levers.optimizer_state)
        copies = _ZEROED_COPIES if job.lean else (parts - 1) * _ADDED_COPIES
        return _STEP_S + price.seconds(weights, job.k) + copies * weights * FLOAT_BYTES / self._copy_bytes_per_s

    def first_step_s(self) -> float:
        """What the first step takes beyond the others."""
        job = self.job
        if not job.k:
            return _FIRST_STEP_S
        touched = optimizer_bytes(job) + FLOAT_BYTES * trainable_count(job)  # autograd has gradients beside weights
        return _FIRST_STEP_S + _FRESH_TIMES[job.levers.trainer] * touched / self._fresh_bytes_per_s

    def ready_s(self, blocks: int) -> float:
        """Making the weights of so many frozen blocks ready, once."""
        job = self.job
        if not job.lean:
            return 0.0
        count = blocks * 12 * job.spec.width**2
        if job.levers.frozen_weights == "disk":
            rate = self.rates.compute.read_bytes_per_s or self._copy_bytes_per_s / _READ_COPIES
            return count * (2 if self._frozen_type == "bf16" else FLOAT_BYTES) / rate  # as the run's own copy has them
        return self._tensors.readying(job.levers.frozen_weights, self._frozen_type).seconds(count)

    def merging_s(self) -> float:
        """Making the weights of all blocks with adapters ready and adding their adapters, once."""
        job = self.job
        if not (job.lean and job.lora_rank):
            return 0.0
        adapted = sum(job.trainable)
        copies = 4 * job.spec.width**2 * _MERGE_COPIES[self._frozen_type]
        return self.ready_s(adapted) + adapted * copies * FLOAT_BYTES / self._copy_bytes_per_s

    def ready_in_step_s(self) -> float:
        """Both in a step: blocks below that are passed in it once, those with adapters on the way up and back."""
        return self.ready_s(0 if self.job.over_features else self.job.lowest) + 2 * self.merging_s()

    def feature_s(self) -> float:
        """Reading what a cache keeps of one image."""
        cache = planned_cache(self.job, 1, 1, 2)
        assert cache is not None
        copies = _FEATURE_COPIES[self.job.levers.feature_cache]
        on_gpu = self.rates.compute.device == "cuda"  # copies were timed there, and features are read by the CPU
        rate = COPY_BYTES_PER_S if on_gpu else self._copy_bytes_per_s
        return copies * FLOAT_BYTES * cache.tokens * self.job.spec.width / rate

    def start_s(self) -> float:
        """Until the first image is read: imports, weights read and a copy of them kept."""
        compute = self.rates.compute
        weights = FLOAT_BYTES * self.job.spec.parameter_count
        imports_s = _IMPORT_S if compute.import_s is None else compute.import_s
        return _START_S + imports_s + weights / self._write_bytes_per_s

    def save_s(self) -> float:
        """A state and the model, at the end of an epoch."""
        return (state_bytes(self.job) + FLOAT_BYTES * self.job.spec.parameter_count) / self._write_bytes_per_s

    def image_s(self, file_bytes: float | None) -> float:
        """Reading one image."""
        compute, values = self.rates.compute, 3 * self.job.spec.image_size**2
        if not compute.decode_bytes_per_s or not compute.render_values_per_s:
            return values / _VALUES_PER_S
        size = _BYTES_A_VALUE * 4 * values if file_bytes is None else file_bytes
        return size / compute.decode_bytes_per_s + values / compute.render_values_per_s


def _ways(job: Job) -> tuple[Way, Way]:
    """How the trained blocks are run, and how the frozen ones."""
    if not job.lean:
        return "eager", "eager"
    ours: Way = "lean-bf16" if job.levers.precision == "bf16" else "lean"
    frozen = frozen_arithmetic(job.levers, adapters=job.lora_rank > 0)
    return ours, "lean-bf16" if frozen == "bf16" else "lean"
