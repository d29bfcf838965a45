"""The lean trainer's bill: more of anything never needs less, fewer bits never more, and the terms are the trainer's."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgetune.model.block import part_tokens
from edgetune.model.registry import find_spec
from edgetune.model.spec import ViTSpec
from edgetune.plan import lean_bill, onnx_bill
from edgetune.plan.bill import filling_part, memory_bill, optimizer_bytes, trainable_count
from edgetune.plan.clock import Clock
from edgetune.plan.job import Job, job_for
from edgetune.plan.levers import Levers
from edgetune.plan.methods import find_method
from edgetune.plan.rates import Rates
from edgetune.schema import LoraPlan
from tests.plan.conftest import make_profile

TINY = find_spec("vit_tiny_patch16_224")
SPECS = [
    find_spec("vit_nano_patch8_64"),
    TINY,
    find_spec("deit_tiny_distilled_patch16_224").at(96),
    find_spec("vit_wee_patch16_reg1_gap_256").at(64),
]
ORDERED = {
    "saved_precision": ("fp32", "bf16", "int8", "int4"),
    "optimizer_state": ("fp32", "int8", "factored"),
    "saved_activations": ("full", "recompute"),
}
RESIDENCES = ("fp32", "bf16", "int8", "disk")


@st.composite
def levers(draw: st.DrawFn) -> Levers:
    others: dict[str, Any] = {name: draw(st.sampled_from(values)) for name, values in ORDERED.items()}
    return Levers(
        trainer="lean",
        precision=draw(st.sampled_from(["fp32", "bf16"])),
        frozen_precision=draw(st.sampled_from(["fp32", "bf16"])),
        frozen_weights=draw(st.sampled_from(RESIDENCES)),
        optimizer=draw(st.sampled_from(["adamw", "adam", "sgd", "sgd-plain"])),
        feature_cache=draw(st.sampled_from(["off", "fp16", "int8"])),
        **others,
    )


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    spec: ViTSpec = draw(st.sampled_from(SPECS))
    name = draw(st.sampled_from(["edgetune", "full", "head", "last-2", "lora"]))
    method = find_method(name, spec.depth)._replace(levers=draw(levers()), band=(0.3, 1.0))
    batch = draw(st.integers(1, 16))
    trained = draw(st.integers(0, spec.depth)) if name == "edgetune" else method.trained
    k = draw(st.integers(1, trained)) if name == "edgetune" and trained else trained
    job = job_for(
        method,
        spec,
        batch_size=batch,
        micro_batch_size=draw(st.integers(1, batch)),
        workers=draw(st.integers(0, 2)),
        trained=trained,
        k=k,
        band_max=draw(st.sampled_from([1.0, 0.8, 0.5])),
    )
    # a job has no cache where there is nothing below
    return job if job.lowest else with_levers(job, feature_cache="off")


def with_levers(job: Job, **values: object) -> Job:
    return msgspec.structs.replace(job, levers=msgspec.structs.replace(job.levers, **values))


def peak(job: Job) -> int:
    return memory_bill(job, 0).total


@given(jobs())
def test_more_images_need_more(job: Job) -> None:
    replace = msgspec.structs.replace
    assert peak(replace(job, batch_size=job.batch_size + 1)) >= peak(job)
    if job.micro_batch_size < job.batch_size:
        assert peak(replace(job, micro_batch_size=job.micro_batch_size + 1)) >= peak(job)


@given(jobs(), st.data())
def test_fewer_tokens_need_no_more(job: Job, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, job.spec.depth - 1))
    fewer = tuple(
        min(kept, job.keep_max[index] // 2 + 1) if at >= index else kept for at, kept in enumerate(job.keep_max)
    )
    assert peak(msgspec.structs.replace(job, keep_max=fewer)) <= peak(job)


@given(jobs())
def test_more_blocks_at_a_time_need_no_less(job: Job) -> None:
    if job.k < sum(job.trainable):
        assert peak(msgspec.structs.replace(job, k=job.k + 1)) >= peak(job)


@given(jobs())
def test_more_trained_blocks_need_no_less(job: Job) -> None:
    """As long as a frozen one is left: with the last of these goes the room in which it is unpacked."""
    assume(job.lowest > 1 and not job.embeddings_trainable)
    lower = tuple(index >= job.lowest - 1 for index in range(job.spec.depth))
    assert peak(msgspec.structs.replace(job, trainable=lower, k=max(1, job.k))) >= peak(job)


@given(jobs())
def test_fewer_bits_never_need_more(job: Job) -> None:
    for name, values in ORDERED.items():
        found = [peak(with_levers(job, **{name: value})) for value in values]
        assert found == sorted(found, reverse=True), name
    if job.lowest == 0 or job.lowest > 2:  # of one or two frozen blocks the unpacked one outweighs what is saved
        found = [peak(with_levers(job, frozen_weights=value)) for value in RESIDENCES]
        assert found == sorted(found, reverse=True)
    for residence in ("bf16", "disk"):  # the others have to be converted for it
        half, whole = (with_levers(job, frozen_weights=residence, frozen_precision=bits) for bits in ("bf16", "fp32"))
        # the peak may rise all the same: products in bf16 bring code of their own, more than a small model saves
        assert lean_bill.passing_bytes(half) <= lean_bill.passing_bytes(whole)
        assert lean_bill.weight_bytes(half) <= lean_bill.weight_bytes(whole)


@given(jobs())
def test_more_blocks_run_again_never_need_more(job: Job) -> None:
    shares = (0.01, 0.3, 0.5, 0.8, 1.0)
    again = [with_levers(job, saved_activations="recompute", recompute_share=share) for share in shares]
    found = [peak(with_levers(job, saved_activations="full")), *map(peak, again)]
    assert found == sorted(found, reverse=True)


@given(jobs(), st.integers(0, 1 << 32))
def test_the_bill_adds_up_and_no_term_is_negative(job: Job, runtime_bytes: int) -> None:
    bill = memory_bill(job, runtime_bytes)
    terms = [getattr(bill, name) for name in bill.__struct_fields__]
    assert min(terms) >= 0
    assert sum(terms) == bill.total
    assert all(isinstance(term, int) for term in terms)


def test_a_block_keeps_ten_widths_a_token_in_the_bits_that_were_chosen() -> None:
    job = job_for(
        find_method("full", 12)._replace(levers=Levers(trainer="lean")), TINY, batch_size=8, micro_batch_size=8
    )
    numbers = 8 * 197 * 192 * (6 + 4)
    assert lean_bill.saved_bytes(job, 3) == pytest.approx(4 * numbers, rel=0.01)
    assert lean_bill.saved_bytes(with_levers(job, saved_precision="bf16"), 3) == pytest.approx(2 * numbers, rel=0.01)
    scaled = (1 + 1 / 16) * numbers
    assert lean_bill.saved_bytes(with_levers(job, saved_precision="int8"), 3) == pytest.approx(scaled, rel=0.02)
    # of the last block the class token alone goes on
    assert lean_bill.saved_bytes(job, 11) == pytest.approx(4 * 8 * 192 * (197 * 3 + 7), rel=0.01)


def test_a_lean_full_keeps_a_sixth_of_what_autograd_keeps() -> None:
    """Eight bits of ten numbers a token, where autograd has 32 bits of sixteen."""
    full = find_method("full", 12)
    eager = memory_bill(job_for(full, TINY, batch_size=8, micro_batch_size=8), 0)
    eight = full._replace(levers=Levers(trainer="lean", saved_precision="int8"))
    lean = memory_bill(job_for(eight, TINY, batch_size=8, micro_batch_size=2), 0)
    assert lean.activations < 0.18 * eager.activations
    assert lean.gradients < 0.06 * 4 * TINY.parameter_count  # which is what autograd holds at the update
    assert lean.total < eager.total / 2


@given(jobs(), st.sampled_from(["torch", "onnx"]))
def test_filling_a_cache_never_makes_the_peak(job: Job, engine) -> None:
    """More images than train at a time pass the frozen blocks only where training's peak has room for them."""
    job = msgspec.structs.replace(job, engine=engine)
    filling = filling_part(job)
    if not job.over_features:
        assert filling == job.micro_batch_size
        return
    assert filling >= job.micro_batch_size
    assert filling * job.spec.tokens <= max(part_tokens(job.spec.width), job.micro_batch_size * job.spec.tokens)
    found = (onnx_bill if engine == "onnx" else lean_bill).moments(job, filling)
    held = {moment.name: 1.2 * (moment.weights + moment.saved) + 1.2 * moment.workspace for moment in found}
    others = max(size for name, size in held.items() if name != lean_bill.FROZEN)
    if filling > job.micro_batch_size:
        more = lean_bill.image_bytes(job, filling) - lean_bill.image_bytes(job, job.micro_batch_size)
        assert held[lean_bill.FROZEN] + more <= 1.25 * (others + lean_bill.gradient_bytes(job))


def test_where_one_image_trains_several_are_prepared() -> None:
    base = find_spec("vit_base_patch16_224")
    job = job_for(find_method("edgetune", 12), base, batch_size=4, micro_batch_size=1)
    assert job.micro_batch_size == 1 < filling_part(job) <= part_tokens(base.width) // base.tokens


@pytest.mark.parametrize("k", [1, 2, 5])
def test_blocks_below_the_lowest_one_drawn_keep_nothing(k: int) -> None:
    method = find_method("edgetune", 12)._replace(levers=Levers(trainer="lean"))
    job = job_for(method, TINY, batch_size=8, micro_batch_size=2, trained=5, k=k)
    draws = list(combinations(range(7, 12), k))
    expected = {index: sum(min(draw) <= index for draw in draws) / len(draws) for index in range(7, 12)}
    assert dict(Clock(job, Rates(make_profile().compute))._kept()) == pytest.approx(expected)


def test_nothing_is_kept_below_the_lowest_trained_block() -> None:
    method = find_method("last-2", 12)._replace(levers=Levers(trainer="lean"))
    job = job_for(method, TINY, batch_size=8, micro_batch_size=2)
    saved = max(moment.saved for moment in lean_bill.moments(job))
    assert saved == lean_bill.saved_bytes(job, 10) + lean_bill.saved_bytes(job, 11)


@pytest.mark.parametrize("name", ["full", "last-2", "head", "lora"])
@pytest.mark.parametrize("residence", RESIDENCES)
@pytest.mark.parametrize("state", ["fp32", "int8", "factored"])
@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "sgd-plain"])
def test_weights_gradient_and_state_are_those_the_engine_holds(name: str, residence, state, kind) -> None:
    torch = pytest.importorskip("torch")
    from edgetune.model.packing import pack
    from edgetune.optim.flat import Group
    from edgetune.optim.lean import GroupOptimizer
    from edgetune.train.halves import adapter_parameters

    spec = find_spec("vit_nano_patch8_64").at(32)
    levers = Levers(trainer="lean", frozen_weights=residence, optimizer_state=state, optimizer=kind)
    job = job_for(find_method(name, 6)._replace(levers=levers), spec, batch_size=2, micro_batch_size=2)
    groups = [Group("head", list(spec.head_parameters()))]
    frozen, ready = 0, 0
    for index, trains in enumerate(job.trainable):
        parameters = list(spec.block_parameters(index))
        if trains and name == "lora":  # beside the weights, which stay frozen
            groups.append(Group("adapters", adapter_parameters(spec, index, LoraPlan().rank)))
        elif trains:
            mlp = [item for item in parameters if item.name.split(".")[2] in ("mlp", "norm2", "ls2")]
            groups += [Group("mlp", mlp), Group("attention", [item for item in parameters if item not in mlp])]
            continue
        matrices = [torch.zeros(item.shape) for item in parameters if len(item.shape) > 1]
        vectors = sum(4 * item.count for item in parameters if len(item.shape) == 1)
        kept = {
            "fp32": sum(value.nbytes for value in matrices),
            "bf16": sum(value.nbytes for value in matrices) // 2,
            "int8": sum(pack(value, "int8").nbytes for value in matrices),
            "disk": -vectors,
        }[residence]
        frozen += kept + vectors
        halves = [("attn", "norm1", "ls1"), ("mlp", "norm2", "ls2")]
        sizes = [4 * sum(item.count for item in parameters if item.name.split(".")[2] in half) for half in halves]
        ready = 0 if residence == "fp32" else max(sizes)
    embeddings = Group("embeddings", list(spec.embedding_parameters()))
    ready += 0 if job.embeddings_trainable else embeddings.values.nbytes
    ready += 4 * 4 * spec.width**2 if name == "lora" else 0  # qkv and proj with the factors' product in them
    groups += [embeddings] if job.embeddings_trainable else []
    held = sum(group.values.nbytes for group in groups)
    assert lean_bill.weight_bytes(job) == held + frozen
    assert lean_bill.passing_bytes(job) == ready
    assert trainable_count(job) == sum(group.size for group in groups)
    assert lean_bill.gradient_bytes(job) == 4 * max(group.size for group in groups)
    total = 0
    for group in groups:
        optimizer = GroupOptimizer(group, kind, state, 0.0)
        optimizer.prepare()
        total += sum(value.nbytes for value in optimizer.state.values())
    assert optimizer_bytes(job) == pytest.approx(total, rel=0.06, abs=4096)
