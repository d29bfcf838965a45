"""What a step holds: packed tensors, the arena under them, what the bill says of both, and a process that stays flat."""

from __future__ import annotations

import gc
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgetune.model import packing
from edgetune.model.packing import pack
from edgetune.plan import lean_bill
from edgetune.plan.job import entering
from edgetune.schema import AlastPlan
from edgetune.train.lean import engine as room
from edgetune.train.lean.arena import Arena
from edgetune.train.lean.frozen import FrozenBlocks
from edgetune.train.lean.tokens import gathered as gather
from edgetune.train.scarcity import OutOfMemoryError
from tests.train.lean.conftest import Pair, make_batch

DTYPES = (torch.float32, torch.bfloat16, torch.int8, torch.uint8, torch.int64)
SHAPES = st.lists(st.integers(1, 60), min_size=1, max_size=3).map(tuple)
REQUESTS = st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=1, max_size=40)
CPU = torch.device("cpu")


def span(values: Tensor) -> tuple[int, int]:
    return values.data_ptr(), values.data_ptr() + values.nbytes


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.sampled_from([1 << 12, 1 << 16, 4 << 20]))
def test_no_two_tensors_of_an_arena_share_a_byte(requests, slab_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgetune.train.lean.arena._SLAB_BYTES", {"cpu": slab_bytes})
        arena = Arena(CPU)
        rounds = []
        for _ in range(3):
            arena.reset()
            given_out = [arena.empty(shape, dtype) for shape, dtype in requests]
            for (shape, dtype), values in zip(requests, given_out, strict=True):
                assert (values.shape, values.dtype) == (shape, dtype)
                assert values.is_contiguous()
                assert values.data_ptr() % dtype.itemsize == 0
            spans = sorted(span(values) for values in given_out)
            assert all(end <= start for (_, end), (start, _) in pairwise(spans))
            for place, values in enumerate(given_out):
                values.fill_(place)
            assert all(bool((values == place).all()) for place, values in enumerate(given_out))
            rounds.append([span(values) for values in given_out])
        assert rounds[0] == rounds[1] == rounds[2]
        assert arena.nbytes >= sum(values.nbytes for values in given_out)


@given(REQUESTS, REQUESTS)
@settings(max_examples=30, deadline=None)
def test_an_arena_grows_to_the_largest_step_and_no_further(first, second) -> None:
    arena = Arena(CPU)
    held = []
    for requests in (first, second, first, second, first):
        arena.reset()
        for shape, dtype in requests:
            arena.empty(shape, dtype)
        held.append(arena.nbytes)
    assert held[1] == held[2] == held[3] == held[4]


@pytest.mark.parametrize("slab_bytes", [1 << 12, 1 << 16])
def test_steps_of_more_and_more_tokens_take_what_the_largest_needs(
    slab_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token counts move from step to step; slabs that became too small must not be kept beside larger ones."""
    monkeypatch.setattr("edgetune.train.lean.arena._SLAB_BYTES", {"cpu": slab_bytes})
    arena = Arena(CPU)
    for tokens in [*range(40, 80), *range(80, 40, -3), *range(50, 80)]:
        arena.reset()
        for width in (192, 192, 3 * 192, 192, 192, 4 * 192) * 3:
            arena.empty((tokens, width), torch.float32)
    largest = 79 * 4 * 192 * 12 * 3
    assert arena.nbytes <= 1.5 * largest  # the rest is ends of slabs


# -- packing ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 7),
    st.sampled_from([64, 192, 256, 96, 10]),
    st.sampled_from(["fp32", "bf16", "int8", "int4"]),
    st.floats(1e-6, 1e6),
    st.integers(0, 1000),
)
def test_what_is_packed_comes_back_within_half_a_step(rows: int, width: int, precision, size: float, seed: int) -> None:
    values = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(seed)) * size
    values[0, 0] = 0
    packed = pack(values, precision)
    found = packed.unpack()
    assert found.shape == values.shape
    assert found[0, 0].eq(0).all()
    groups = values.view(-1, 64 if width % 64 == 0 else width)
    off = (found - values).abs().view(groups.shape)
    if precision == "fp32":
        assert found.equal(values)
    elif precision == "bf16":
        assert bool((off <= groups.abs() / 256 + 1e-30).all())
    else:
        step = groups.abs().amax(1, keepdim=True) / (127 if precision == "int8" else 7)
        assert bool((off <= step * 0.5001 + 1e-30).all())
    if width % 64 == 0:
        assert lean_bill.packed_bytes(values.numel(), precision) == packed.nbytes
    assert lean_bill.SCALE_GROUP == packing.GROUP


def test_every_code_of_four_bits_survives() -> None:
    values = torch.arange(-7, 8).float().repeat(64)[: 64 * 12].view(12, 64)
    values[:, 0] = 7
    assert pack(values, "int4").unpack().equal(values)


# -- a step -----------------------------------------------------------------------------------------------------------


def saved_in_a_step(made: Pair, micro: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """Bytes taken from the arena, tensors taken, and bytes of the positions of dropped tokens."""
    arena, taken, positions = made.lean._arena, [], []
    give = arena.empty

    def counting(shape, dtype):
        values = give(shape, dtype)
        taken.append(values.nbytes)
        return values

    def gathered(x: Tensor, kept: Tensor) -> Tensor:
        positions.append(kept.nbytes)
        return gather(x, kept)

    monkeypatch.setattr(arena, "empty", counting)
    for module in ("engine", "below"):
        monkeypatch.setattr(f"edgetune.train.lean.{module}.gathered", gathered)
    made.lean.train_step(make_batch(made.lean.spec, made.lean.plan.batch_size), 1e-4, micro)
    return sum(taken), len(taken), sum(positions)


BAND = AlastPlan(mode="constrained", alpha=0.0, reduction="mean")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("kept", ["full", "recompute", "recompute half"])
@pytest.mark.parametrize(
    ("model", "method", "settings_"),
    [
        ("plain", "full", {}),
        ("registers", "last-2", {}),
        ("distilled", "last-3", {}),
        ("no-class-token", "full", {}),
        ("plain", "edgetune", {"alast": BAND}),
    ],
)
def test_the_bill_counts_what_a_step_saves(
    model: str, method: str, settings_: dict, kept: str, precision: str, pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    levers = [f"saved_precision={precision}", f"saved_activations={kept.split()[0]}"]
    levers += ["recompute_share=0.5"] if kept.endswith("half") else []
    if method == "edgetune":
        levers += ["trained_blocks=3", "token_min=0.5", "token_max=0.5"]
    made = pair(model, method, *levers, batch=6, **settings_)
    saved, count, positions = saved_in_a_step(made, 2, monkeypatch)
    first = 0 if made.job.embeddings_trainable else made.job.lowest
    blocks = range(first, made.job.spec.depth)
    predicted = sum(lean_bill.saved_bytes(made.job, index) for index in blocks)
    bound = 0  # of the positions: no block of this band drops anything but the first
    if made.job.drops_tokens:
        bound = sum(
            8 * made.job.batch_size * entering(made.job.spec, made.job.keep_max)[index + 1] for index in blocks[:-1]
        )
        assert 0 < positions <= bound
    assert count > 0
    assert saved == pytest.approx(predicted - bound, rel=0.02)


def test_a_step_uses_the_memory_of_the_one_before(pair) -> None:
    made = pair("plain", "last-2", "saved_precision=int8")
    places = []
    for seed in range(3):
        made.lean.train_step(make_batch(made.lean.spec, 5, seed=seed), 1e-4, 2)
        places.append([slab.data_ptr() for slab in made.lean._arena._slabs])
    assert places[0] == places[1] == places[2]


def test_evaluation_gives_back_what_only_steps_need(pair) -> None:
    made = pair("plain", "last-2", "saved_precision=int8")
    engine = made.lean
    arenas = (engine._arena, engine._gradients)
    engine.train_step(make_batch(engine.spec, 5), 1e-4, 2)
    assert all(arena.nbytes for arena in arenas)
    before = engine.evaluate([make_batch(engine.spec, 4, seed=1)], 2)
    assert before is not None
    assert not any(arena.nbytes for arena in arenas)
    twin = pair("plain", "last-2", "saved_precision=int8").lean
    for seed in (0, 2):
        twin.train_step(make_batch(twin.spec, 5, seed=seed), 1e-4, 2)
    engine.train_step(make_batch(engine.spec, 5, seed=2), 1e-4, 2)  # as if there had been no evaluation
    for name, values in engine._trained_weights().items():
        assert values.equal(twin._trained_weights()[name]), name


def test_validation_images_share_a_reading_of_the_frozen_weights(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pair("plain", "last-2", "frozen_weights=disk")
    engine, batches = made.lean, [make_batch(made.lean.spec, 1, seed=seed) for seed in range(7)]
    expected = made.autograd.evaluate(batches, 1)
    read = FrozenBlocks.half
    asked = []

    def noted(self: FrozenBlocks, *half: Any) -> Any:
        asked.append(half)
        return read(self, *half)

    monkeypatch.setattr(FrozenBlocks, "half", noted)
    found = engine.evaluate(batches, 1)
    assert found is not None
    assert expected is not None
    assert found.predictions == expected.predictions
    groups = -(-len(batches) // engine.plan.batch_size)
    assert groups < len(batches)
    assert len(asked) == groups * 2 * engine._lowest


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat(pair) -> None:
    levers = ("saved_precision=int8", "optimizer_state=int8", "frozen_weights=int8")
    made = pair("registers", "last-1", *levers)
    batch = make_batch(made.lean.spec, 5)
    gc.collect()
    for step in range(200):
        if step == 50:
            start = resident_bytes()
        made.lean.train_step(batch, 1e-5, 2)
    assert resident_bytes() - start <= 150 * 1024  # a KiB a step


# -- a step that memory ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["attention_backward", "mlp_backward"])
def test_an_interrupted_step_updates_no_group_twice(function: str, pair, monkeypatch: pytest.MonkeyPatch) -> None:
    adaptive = AlastPlan(mode="constrained", alpha=1.0, reduction="mean")
    levers = ("optimizer=adamw", "trained_blocks=3", "k=2", "token_min=0.3", "token_max=1")
    made = pair("plain", "edgetune", *levers, alast=adaptive)
    batches = [make_batch(made.lean.spec, 5, seed=seed) for seed in range(3)]
    made.lean.train_step(batches[0], 1e-3, 5)
    state = made.lean.controller.state_dict()
    work, calls = getattr(room, function), []

    def fail_once(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 3:  # of two parts a block: in the second block from above
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return work(*arguments, **keywords)

    monkeypatch.setattr(room, function, fail_once)
    before = made.weights()[0]
    with pytest.raises(OutOfMemoryError):
        made.lean.train_step(batches[1], 1e-3, 3)
    assert made.lean.controller.state_dict() == state
    between = made.weights()[0]
    done = {group.name for group in made.lean._groups.values() if any(
        not between[name].equal(before[name]) for name in group.weights
    )}  # fmt: skip
    assert "head" in done
    report = made.lean.train_step(batches[1], 1e-3, 2)
    after = made.weights()[0]
    for name, group in made.lean._groups.items():
        trains = name == "head" or int(name.split(".")[1]) in report.trained
        expected = 2 if trains else 1
        first = made.lean._optimizers[name].steps
        assert first in (expected, expected - 1), name  # a block may have rested in the first step
        for weight in group.weights:
            if name in done:
                assert after[weight].equal(between[weight]), weight
            elif trains:
                assert not after[weight].equal(before[weight]), weight
    made.lean.train_step(batches[2], 1e-3, 2)  # and the next step updates all of its groups
    assert not made.weights()[0]["head.weight"].equal(after["head.weight"])
