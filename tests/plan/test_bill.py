"""The memory bill grows with everything that costs memory, and counts what a block really keeps."""

from __future__ import annotations

from math import isclose

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.model.registry import find_spec
from edgetune.model.spec import ViTSpec
from edgetune.plan.bill import memory_bill, moments, optimizer_bytes, trainable_count, weight_bytes
from edgetune.plan.job import Job, job_for
from edgetune.plan.methods import find_method

TINY = find_spec("vit_tiny_patch16_224")
SPECS = [find_spec("vit_nano_patch8_64"), TINY, find_spec("deit_tiny_distilled_patch16_224").at(96)]
NAMES = ["edgetune", "alast", "full", "checkpoint", "head", "last-2", "lora", "alast-lora", "random-k"]


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    spec: ViTSpec = draw(st.sampled_from(SPECS))
    method = find_method(draw(st.sampled_from(NAMES)), spec.depth)
    batch = draw(st.integers(1, 16))
    trained = draw(st.integers(0, spec.depth)) if method.searched else method.trained
    k = draw(st.integers(1, trained)) if method.searched and trained else min(method.k, trained)
    micro = draw(st.integers(1, batch))
    band = draw(st.sampled_from([1.0, 0.8, 0.5]))
    return job_for(method, spec, batch_size=batch, micro_batch_size=micro, trained=trained, k=k, band_max=band)


def peak(job: Job) -> int:
    return memory_bill(job, 0).total


@given(jobs(), st.data())
def test_the_peak_is_monotone(job: Job, data: st.DataObject) -> None:
    replace = msgspec.structs.replace
    assert peak(replace(job, batch_size=job.batch_size + 1)) >= peak(job)
    if job.micro_batch_size < job.batch_size:
        assert peak(replace(job, micro_batch_size=job.micro_batch_size + 1, batch_size=job.batch_size + 1)) >= peak(job)
    if job.k < sum(job.trainable):
        assert peak(replace(job, k=job.k + 1)) >= peak(job)
    # the last frozen block to go takes with it what passing frozen blocks needs, in the lean trainer
    if job.lowest > job.lean and not job.embeddings_trainable:
        lower = tuple(index >= job.lowest - 1 for index in range(job.spec.depth))
        assert peak(replace(job, trainable=lower, k=max(1, job.k))) >= peak(job)
    index = data.draw(st.integers(0, job.spec.depth - 1))
    fewer = tuple(
        min(kept, job.keep_max[index] // 2 + 1) if at >= index else kept for at, kept in enumerate(job.keep_max)
    )
    assert peak(replace(job, keep_max=fewer)) <= peak(job)


@given(jobs(), st.integers(0, 1 << 32))
def test_the_bill_adds_up_and_no_term_is_negative(job: Job, runtime_bytes: int) -> None:
    bill = memory_bill(job, runtime_bytes)
    terms = [getattr(bill, name) for name in bill.__struct_fields__]
    assert min(terms) >= 0
    assert sum(terms) == bill.total
    assert bill.runtime == runtime_bytes


def test_a_trained_block_keeps_sixteen_widths_a_token() -> None:
    """The figure of plain autograd; 229 MB for ViT-Ti at batch 8 is what others measured."""
    job = job_for(find_method("full", 12), TINY, batch_size=8, micro_batch_size=8)
    kept = max(moment.activations for moment in moments(job))
    assert isclose(kept, 12 * 16 * 8 * 197 * 192 * 4, rel_tol=0.01)


def test_frozen_blocks_below_the_lowest_trained_one_keep_nothing() -> None:
    last_1 = job_for(find_method("last-1", 12), TINY, batch_size=8, micro_batch_size=8)
    last_2 = job_for(find_method("last-2", 12), TINY, batch_size=8, micro_batch_size=8)
    assert max(m.activations for m in moments(last_2)) == 2 * max(m.activations for m in moments(last_1))


def test_a_frozen_block_above_a_trained_one_is_not_free() -> None:
    spread = job_for(find_method("last-4", 12), TINY, batch_size=8, micro_batch_size=8)
    spread = msgspec.structs.replace(spread, trainable=tuple(index in (0, 4, 7, 11) for index in range(12)))
    last_4 = job_for(find_method("last-4", 12), TINY, batch_size=8, micro_batch_size=8)
    ratio = max(m.activations for m in moments(spread)) / max(m.activations for m in moments(last_4))
    assert ratio == pytest.approx(2.2, abs=0.1)  # field measurement


def test_counts_match_the_model() -> None:
    full = job_for(find_method("full", 12), TINY, batch_size=1, micro_batch_size=1)
    assert weight_bytes(full) == 4 * TINY.parameter_count
    assert trainable_count(full) == TINY.parameter_count
    assert optimizer_bytes(full) == 8 * TINY.parameter_count
    head = job_for(find_method("head", 12), TINY, batch_size=1, micro_batch_size=1)
    assert trainable_count(head) == 2 * 192 + 192 * TINY.classes + TINY.classes


@pytest.mark.parametrize("method", ["full", "last-2", "lora"])
def test_saved_bytes_are_those_autograd_keeps(method: str) -> None:
    """The table of the bill beside what torch really asks to keep, for one block with its classifier left out."""
    torch = pytest.importorskip("torch")
    from edgetune.model.lora import add_lora
    from edgetune.model.vit import VisionTransformer
    from edgetune.profile.block import saved_bytes

    spec = ViTSpec(name="x", width=96, depth=3, heads=3, patch_size=8, image_size=64, classes=5)
    job = job_for(find_method(method, 3), spec, batch_size=2, micro_batch_size=2)
    torch.manual_seed(0)
    model = VisionTransformer(spec)
    model.requires_grad_(False)
    for index, block in enumerate(model.blocks):
        block.requires_grad_(job.trainable[index])
    if job.lora_rank:
        add_lora(model, job.lora_rank, 8.0)
    x = torch.randn(2, spec.tokens, spec.width, requires_grad=bool(job.lora_rank) or method != "last-2")

    def forward() -> object:
        y = x
        for index, block in enumerate(model.blocks):
            with torch.set_grad_enabled(index >= job.lowest):
                y, _ = block(y)
        return y

    kept = saved_bytes(forward, model)
    predicted = max(moment.activations for moment in moments(job))
    assert kept == pytest.approx(predicted, rel=0.01)
