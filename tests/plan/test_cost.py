"""Work against the sanity bands of the method's own arithmetic, and seconds against the probes they come from."""

from __future__ import annotations

import random

import msgspec
import pytest

from edgetune.model.registry import find_spec
from edgetune.plan.clock import Clock
from edgetune.plan.cost import time_of, watts_of
from edgetune.plan.job import job_for
from edgetune.plan.methods import find_method, with_levers
from edgetune.plan.rates import Rates
from edgetune.plan.work import work_of, work_per_image
from edgetune.schema import Compute, Power
from tests.plan.conftest import make_profile

BASE, TINY = find_spec("vit_base_patch16_224"), find_spec("deit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("spec", "k", "budget", "expected"),
    [
        (BASE, 12, 1.0, 0.99), (BASE, 9, 1.0, 0.90), (BASE, 6, 1.0, 0.81),
        (BASE, 12, 0.95, 0.76), (BASE, 9, 0.95, 0.69), (BASE, 6, 0.95, 0.61),
        (BASE, 12, 0.90, 0.59), (BASE, 9, 0.90, 0.53), (BASE, 6, 0.90, 0.47),
        (TINY, 12, 1.0, 0.99), (TINY, 9, 1.0, 0.91), (TINY, 6, 1.0, 0.82),
        (TINY, 12, 0.85, 0.45), (TINY, 9, 0.85, 0.40), (TINY, 6, 0.85, 0.36),
    ],
)  # fmt: skip
def test_adaptive_layer_selection_costs_what_its_arithmetic_says(spec, k, budget, expected) -> None:
    """Blocks only, relative to full fine-tuning; random draws, backward stopping at the lowest drawn block."""
    from edgetune.alast import kept_through

    tokens = (spec.tokens, *(1 + kept for kept in kept_through([budget] * 11, spec.patches)))
    rest = spec.embed_flops() + 3 * spec.head_flops()
    rng = random.Random(0)
    draws = [tuple(sorted(rng.sample(range(12), k))) for _ in range(400)]
    mean = sum(work_of(spec, tokens, draw, False, 0).total - rest for draw in draws) / len(draws)
    full = work_of(spec, (spec.tokens,) * 12, tuple(range(12)), True, 0).total - rest - spec.embed_flops()
    assert mean / full == pytest.approx(expected, abs=0.012)


def test_the_expected_work_is_the_mean_over_draws() -> None:
    job = job_for(find_method("edgetune", 12), TINY, batch_size=8, micro_batch_size=8, trained=6, k=2)
    tokens = tuple(round(count) for count in (TINY.tokens, *(1 + kept for kept in job.keep_expected[:-1])))
    rng = random.Random(0)
    draws = [tuple(sorted(rng.sample(range(6, 12), 2))) for _ in range(3000)]
    mean = sum(work_of(TINY, tokens, draw, False, 0, job.lean).total for draw in draws) / len(draws)
    assert work_per_image(job).total == pytest.approx(mean, rel=0.005)


def test_full_training_costs_three_forwards() -> None:
    job = job_for(find_method("full", 12), TINY, batch_size=8, micro_batch_size=8)
    work = work_per_image(job)
    assert 2.9 < work.total / work.forward < 3.1


def test_head_training_costs_hardly_more_than_a_forward() -> None:
    work = work_per_image(job_for(find_method("head", 12), TINY, batch_size=8, micro_batch_size=8))
    assert work.total < 1.01 * work.forward


def test_seconds_follow_the_probed_rate() -> None:
    job = job_for(find_method("full", 12), TINY, batch_size=8, micro_batch_size=8)
    fast, slow = (time_of(job, 80, 8, Rates(make_profile(gflops=rate).compute)) for rate in (100.0, 10.0))
    assert fast is not None
    assert slow is not None
    assert slow.epoch_s > 3 * fast.epoch_s
    arithmetic_s = 80 * work_per_image(job).total / 10e9
    assert arithmetic_s < slow.epoch_s < 1.2 * arithmetic_s


def test_a_run_pays_for_the_evaluations_it_makes_and_for_what_it_writes() -> None:
    job = job_for(find_method("full", 12), TINY, batch_size=8, micro_batch_size=8)
    compute = msgspec.structs.replace(make_profile().compute, write_bytes_per_s=100e6, import_s=2.0)
    each, few = (time_of(job, 80, 8, Rates(compute), evaluations=share) for share in (1.0, 0.1))
    assert each is not None
    assert few is not None
    assert each.total_s(10) - few.total_s(10) == pytest.approx(9 * each.eval_s)
    # a run's end is always evaluated and saved
    assert few.total_s(1) - few.total_s(0.5) == pytest.approx(0.5 * few.epoch_s)
    assert few.total_s(2) - few.total_s(1) == pytest.approx(few.epoch_s + few.save_s)
    # parameters and two moments of them, then the model
    assert each.save_s == pytest.approx(4 * TINY.parameter_count * 4 / 100e6, rel=0.001)
    assert each.start_s == pytest.approx(3.0 + TINY.parameter_count * 4 / 100e6)
    head = time_of(job_for(find_method("head", 12), TINY, batch_size=8, micro_batch_size=8), 80, 8, Rates(compute))
    assert head is not None
    assert head.save_s < 0.3 * each.save_s


def test_frozen_weights_on_disk_are_read_for_every_batch_of_an_evaluation() -> None:
    method = with_levers(find_method("edgetune", 12), ["feature_cache=off", "frozen_weights=disk"], 12)
    job = job_for(method, TINY, batch_size=8, micro_batch_size=4)
    rates = [msgspec.structs.replace(make_profile().compute, read_bytes_per_s=rate) for rate in (1e9, 1e8)]
    fast, slow = (time_of(job, 80, 20, Rates(compute)) for compute in rates)
    assert fast is not None
    assert slow is not None
    once_s = 12 * TINY.width**2 * job.lowest * 4 / 1e8 * 0.9  # by how much one reading is slower
    assert slow.eval_s - fast.eval_s == pytest.approx(3 * once_s)
    assert slow.epoch_s - fast.epoch_s == pytest.approx(10 * once_s)


def test_the_lean_allocator_slows_blocks_alone() -> None:
    job = job_for(find_method("edgetune", 12), TINY, batch_size=8, micro_batch_size=4)
    rates = Rates(make_profile().compute)
    fast, lean = (time_of(msgspec.structs.replace(job, allocator=kind), 80, 8, rates) for kind in ("fast", "lean"))
    assert fast is not None
    assert lean is not None
    assert 1.2 * fast.view_s < lean.view_s <= 1.5 * fast.view_s
    assert 1.2 * fast.step_s < lean.step_s < 1.5 * fast.step_s
    assert (lean.start_s, lean.save_s, lean.first_step_s) == (fast.start_s, fast.save_s, fast.first_step_s)


def test_the_last_mlp_is_run_once_for_many_parts() -> None:
    """So splitting a batch adds no more of it than of attention's share."""
    job = job_for(find_method("edgetune", 12), TINY, batch_size=8, micro_batch_size=1)
    clock = Clock(job, Rates(make_profile().compute))
    assert clock._tail_mlps(197, 1.0) == pytest.approx(1 / 8)  # eight images' one token each
    assert Clock(msgspec.structs.replace(job, micro_batch_size=8), clock.rates)._tail_mlps(197, 8.0) == 1.0
    pooled = job_for(
        find_method("edgetune", 12), find_spec("vit_betwixt_patch16_reg4_gap_256"), batch_size=8, micro_batch_size=3
    )
    assert Clock(pooled, clock.rates)._tail_mlps(261, 8 / 3) == 1.0  # where all tokens are read, each part has its own


def test_merging_adapters_has_its_price() -> None:
    method = with_levers(find_method("lora", 12), ["trainer=lean"], 12)
    job = job_for(method, TINY, batch_size=8, micro_batch_size=8)
    copies = [msgspec.structs.replace(make_profile().compute, copy_bytes_per_s=rate) for rate in (1e12, 1e9)]
    fast, slow = (time_of(job, 80, 8, Rates(compute)) for compute in copies)
    assert fast is not None
    assert slow is not None
    merged_s = 2 * 12 * 4 * TINY.width**2 * 2 * 4 / 1e9  # there and back, twelve blocks, twice copied
    assert slow.step_s - fast.step_s > merged_s


def test_without_probes_nothing_is_timed() -> None:
    job = job_for(find_method("full", 12), TINY, batch_size=8, micro_batch_size=8)
    assert time_of(job, 80, 8, Rates(Compute())) is None


def rates_at(rates: Rates, tokens: int) -> float | None:
    """FLOPs a second of a forward pass on four images."""
    seconds = rates.seconds("forward", "eager", 256, tokens, 4)
    return 4 * TINY.block_flops(tokens).forward * (256 / 192) ** 2 / seconds if seconds else None


def test_rates_lie_between_the_probes_around_them() -> None:
    compute = make_profile().compute
    uneven = [
        msgspec.structs.replace(cost, seconds=cost.seconds * (3 if cost.tokens == 50 else 1))
        for cost in compute.block_costs
    ]
    rates = Rates(msgspec.structs.replace(compute, block_costs=uneven))
    few, some, many = (rates_at(rates, tokens) for tokens in (50, 100, 197))
    assert few is not None
    assert some is not None
    assert many is not None
    assert few < some < many


def test_the_users_watts_win_over_what_was_measured() -> None:
    compute = make_profile().compute
    measured = [msgspec.structs.replace(cost, energy_j=7.0 * cost.seconds) for cost in compute.block_costs]
    compute = msgspec.structs.replace(compute, block_costs=measured)
    power = Power(total_w=3.0)
    assert watts_of(power, compute, 5.0) == 5.0
    assert watts_of(power, compute, None) == pytest.approx(7.0)
    assert watts_of(power, None, None) == 3.0
    unmeasured = msgspec.structs.replace(make_profile().compute, busy_w=6.0)
    assert watts_of(power, unmeasured, None) == 6.0  # not what is drawn at rest
    assert watts_of(power, msgspec.structs.replace(compute, busy_w=6.0), None) == pytest.approx(7.0)
    assert watts_of(Power(total_w=3.0, total_corrected_w=4.0), None, None) == 3.0  # a cap counts what the sensor says
    assert watts_of(None, None, None) is None
