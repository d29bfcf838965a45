"""Prices from probes: exact where the model is, between the probes elsewhere, never negative."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.plan.rates import PARTS, Prices, Rates, _least_squares
from edgetune.schema import BlockCost, Compute

SHAPES = ((192, 197, 2), (384, 50, 8), (768, 197, 4), (384, 197, 2), (192, 50, 8), (192, 17, 1), (384, 50, 2),
          (768, 50, 2), (192, 50, 2), (384, 197, 8), (768, 197, 1))  # fmt: skip
TRUE = Prices(calls=3e-4, elements=2e-9, products=1.5e-10, attention=4e-11, weights=2e-10)


def compute_of(prices: Prices, noise: float = 0.0, lever: str = "lean", **fields: object) -> Compute:
    rng = random.Random(0)
    costs = [
        BlockCost(
            width=width,
            heads=width // 64,
            tokens=tokens,
            batch_size=images,
            lever=lever,
            part=part,
            seconds=prices.seconds(width, tokens, images) * rng.uniform(1 - noise, 1 + noise),
        )
        for (width, tokens, images), part in itertools.product(SHAPES, PARTS)
    ]
    return Compute(block_costs=costs, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "tokens", "images"), [(192, 65, 6), (320, 101, 3), (512, 130, 1), (1024, 197, 2), (768, 577, 1)]
)
@pytest.mark.parametrize("part", PARTS)
def test_a_machine_that_obeys_the_prices_is_predicted(width: int, tokens: int, images: int, part: str) -> None:
    found = Rates(compute_of(TRUE)).seconds(part, "lean", width, tokens, images)  # type: ignore[arg-type]
    assert found == pytest.approx(TRUE.seconds(width, tokens, images), rel=0.01)


def test_a_probe_itself_is_given_back_whatever_the_prices_leave_unexplained() -> None:
    """Of its forward pass, and of both parts of the backward pass together."""
    compute = compute_of(TRUE, noise=0.2)
    rates = Rates(compute)
    for width, tokens, images in SHAPES:
        took = {cost.part: cost.seconds for cost in compute.block_costs if shape_of(cost) == (width, tokens, images)}
        found = [rates.seconds(part, "lean", width, tokens, images) or 0.0 for part in PARTS]
        assert found[0] == pytest.approx(took["forward"], rel=0.02)
        assert sum(found[1:]) == pytest.approx(took["pass_gradient"] + took["weight_gradient"], rel=0.02)


def shape_of(cost: BlockCost) -> tuple[int, int, int]:
    return cost.width, cost.tokens, cost.batch_size


def test_one_difference_that_noise_ate_up_moves_little() -> None:
    """The forward pass was timed too long, so that passing the gradient on seems to take next to nothing."""
    compute = compute_of(TRUE)
    broken = []
    for cost in compute.block_costs:
        if shape_of(cost) == SHAPES[2] and cost.part == "forward":
            cost = msgspec.structs.replace(cost, seconds=1.9 * cost.seconds)
        elif shape_of(cost) == SHAPES[2] and cost.part == "pass_gradient":
            cost = msgspec.structs.replace(cost, seconds=0.1 * cost.seconds)
        broken.append(cost)
    rates = Rates(msgspec.structs.replace(compute, block_costs=broken))
    for part in PARTS:
        found = rates.seconds(part, "lean", 384, 101, 4)
        assert found == pytest.approx(TRUE.seconds(384, 101, 4), rel=0.35)


def test_noise_in_the_probes_moves_what_lies_between_by_no_more() -> None:
    rates = Rates(compute_of(TRUE, noise=0.2))
    for width, tokens, images in ((192, 65, 6), (320, 101, 3), (512, 130, 1)):
        found = rates.seconds("forward", "lean", width, tokens, images)
        assert found == pytest.approx(TRUE.seconds(width, tokens, images), rel=0.3)


def test_work_left_out_leaves_calls_and_weights() -> None:
    rates = Rates(compute_of(TRUE))
    whole, none = (rates.seconds("forward", "lean", 384, 50, 8, share) for share in (1.0, 0.0))
    assert none == pytest.approx(TRUE.calls + TRUE.weights * 384**2, rel=0.01)
    assert whole == pytest.approx(TRUE.seconds(384, 50, 8), rel=0.01)


def test_an_mlp_that_is_run_seldom_costs_its_calls_and_weights_seldom() -> None:
    rates = Rates(compute_of(TRUE))
    always, never = (rates.seconds("forward", "lean", 384, 50, 8, 0.0, seldom) for seldom in (1.0, 0.0))
    assert always == pytest.approx(TRUE.calls + TRUE.weights * 384**2, rel=0.01)
    assert never == pytest.approx(TRUE.calls / 2 + TRUE.weights * 384**2 / 3, rel=0.01)


def test_blocks_under_the_lean_allocator_take_as_much_longer_as_their_probes() -> None:
    usual = compute_of(TRUE)
    unprobed = Rates(usual)
    assert unprobed.tight("forward", "lean", 384) == 1.5
    assert unprobed.tight("forward", "eager", 384) == 1.35
    twice = [
        msgspec.structs.replace(cost, lever="lean-tight", seconds=(2 if cost.part == "forward" else 3) * cost.seconds)
        for cost in usual.block_costs
    ]
    rates = Rates(msgspec.structs.replace(usual, block_costs=[*usual.block_costs, *twice]))
    assert rates.tight("forward", "lean", 384) == pytest.approx(2.0, rel=0.02)
    assert rates.tight("weight_gradient", "lean", 384) == pytest.approx(3.0, rel=0.02)
    assert rates.tight("forward", "lean-bf16", 384) == pytest.approx(2.0, rel=0.02)
    assert rates.seconds("forward", "lean", 384, 50, 8) == pytest.approx(TRUE.seconds(384, 50, 8), rel=0.01)
    elsewhere = msgspec.structs.replace(rates.compute, device="cuda")
    assert Rates(elsewhere).tight("forward", "lean", 384) == 1.0
    # what is quicker there is noise
    quick = [msgspec.structs.replace(cost, lever="lean-tight", seconds=0.5 * cost.seconds) for cost in twice]
    rates = Rates(msgspec.structs.replace(usual, block_costs=[*usual.block_costs, *quick]))
    assert rates.tight("forward", "lean", 384) == pytest.approx(1.0, rel=0.02)


def test_more_images_at_a_time_never_take_longer_each_under_the_lean_allocator() -> None:
    """A search for what fits takes that for granted."""
    usual = compute_of(TRUE)
    tight = []
    for (width, tokens, images), factor in {(192, 17, 1): 3.0, (192, 50, 8): 2.0, (384, 50, 2): 1.5, (384, 50, 8): 1.6,
                                            (768, 50, 2): 1.3, (768, 197, 1): 1.25}.items():  # fmt: skip
        tight += [
            msgspec.structs.replace(cost, lever="lean-tight", seconds=factor * cost.seconds)
            for cost in usual.block_costs
            if shape_of(cost) == (width, tokens, images)
        ]
    rates = Rates(msgspec.structs.replace(usual, block_costs=[*usual.block_costs, *tight]))
    for width, tokens in ((192, 197), (384, 197), (768, 50), (768, 197)):
        each = []
        for images in (1, 2, 4, 8, 32):
            whole = rates.seconds("forward", "lean", width, tokens, images)
            assert whole is not None
            each.append(whole * rates.tight("forward", "lean", width) / images)
        assert all(fewer >= more for fewer, more in itertools.pairwise(each)), (width, tokens, each)


def test_what_was_not_probed_is_taken_from_what_is_nearest() -> None:
    eager = Rates(compute_of(TRUE, lever="eager", gemm_flops={"fp32": 1e11, "bf16": 4e11}))
    lean, plain = (eager.seconds("forward", way, 384, 50, 8) for way in ("lean", "eager"))
    assert lean == plain
    short = Rates(compute_of(TRUE, gemm_flops={"fp32": 1e11, "bf16": 4e11}))
    fast, slow = (short.seconds("forward", way, 768, 197, 4) for way in ("lean-bf16", "lean"))
    assert fast is not None
    assert slow is not None
    assert 0.25 * slow < fast < 0.7 * slow  # the products alone are faster
    product = Rates(Compute(gemm_flops={"fp32": 1e11}))
    assert product.seconds("forward", "lean", 384, 50, 8) == pytest.approx(
        8 * 50 * (24 * 384**2 + 4 * 50 * 384) / 0.6e11
    )
    assert not Rates(Compute()).known
    assert Rates(Compute()).seconds("forward", "lean", 384, 50, 8) is None


@given(st.lists(st.lists(st.floats(1e-6, 1e6), min_size=5, max_size=5), min_size=1, max_size=12))
def test_least_squares_are_never_negative(rows: list[list[float]]) -> None:
    found = _least_squares(rows, [1.0] * len(rows))
    assert len(found) == 5
    assert all(value >= 0 for value in found)
