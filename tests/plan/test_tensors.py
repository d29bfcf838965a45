"""Prices of what is done with tensors, from probes and without."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.plan.tensors import Price, TensorPrices
from edgetune.schema import Compute, TensorCost


def kept(numbers: int, seconds: float) -> TensorCost:
    return TensorCost(operation="keep", lever="int8", numbers=numbers, seconds=seconds)


def prices(*costs: TensorCost) -> TensorPrices:
    return TensorPrices(Compute(copy_bytes_per_s=4e9, tensor_costs=list(costs)))


def test_a_price_is_the_line_through_few_numbers_and_many() -> None:
    price = prices(kept(1_000, 30e-6), kept(1_000_000, 1029e-6)).keeping("int8")
    assert price.call_s == pytest.approx(29e-6)
    assert price.number_s == pytest.approx(1e-9)
    assert price.seconds(2_000_000, 3) == pytest.approx(2000e-6 + 87e-6)


def test_where_few_numbers_fit_into_a_cache_the_many_say_the_price() -> None:
    assert prices(kept(1_000, 1e-7), kept(1_000_000, 1e-3)).keeping("int8") == Price(0.0, 1e-9)
    assert prices(kept(1_000_000, 1e-3)).keeping("int8") == Price(0.0, 1e-9)


@given(st.lists(st.builds(kept, st.integers(-1, 10**9), st.sampled_from((-1.0, 0.0, 1e-9, 1.0, 1e9))), max_size=4))
def test_no_probes_make_a_price_below_nothing(costs: list[TensorCost]) -> None:
    price = prices(*costs).keeping("int8")
    assert price.call_s >= 0
    assert price.number_s > 0


def test_without_probes_prices_follow_copies() -> None:
    guessed = prices()
    assert guessed.keeping("fp32").number_s == pytest.approx(0.4e-9)
    assert guessed.updating("lean", "adamw", "fp32").number_s == pytest.approx(7e-9)
    assert TensorPrices(Compute()).keeping("fp32").number_s > 0


@pytest.mark.parametrize(
    ("asked", "lever"),
    [
        (("lean", "adamw", "int8"), "lean/adamw/int8"),
        (("lean", "adam", "int8"), "lean/adamw/fp32"),  # Adam has one state
        (("lean", "sgd", "int8"), "lean/sgd"),
        (("lean", "sgd-plain", "fp32"), "lean/sgd-plain"),
        (("autograd", "adam", "fp32"), "autograd/adamw"),
        (("autograd", "sgd", "fp32"), "autograd/sgd"),
    ],
)
def test_an_update_is_priced_by_its_trainer_rule_and_state(asked: tuple[str, str, str], lever: str) -> None:
    cost = TensorCost(operation="update", lever=lever, numbers=10, seconds=1.0)
    assert prices(cost).updating(*asked) == Price(0.0, 0.1)


def test_weights_stored_as_they_are_used_cost_nothing() -> None:
    assert prices().readying("bf16", "bf16") == Price(0.0, 0.0)
    assert prices().readying("int8", "fp32").number_s == pytest.approx(0.4e-9)
