from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.alast import draw_blocks, kept_count, kept_through, select_tokens, token_delta, update_budget
from edgetune.alast.budgets import within_band
from edgetune.alast.tokens import top_tokens

BUDGET = st.floats(0, 1)


# -- importance -------------------------------------------------------------------------------------------------------


def test_delta_is_the_squared_movement_of_the_class_token():
    before, after = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    after[0, 0] = torch.tensor([1.0, 2.0, 0.0, 0.0])
    after[1, 0, 3] = 3.0
    after[:, 1:] = 100  # patches don't count
    assert token_delta(before, after).item() == 1 + 4 + 9
    assert token_delta(before, after, reduction="mean").item() == 7


def test_delta_without_class_token_is_of_the_mean_patch():
    before, after = torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)
    after[0, 2:] = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    after[0, :2] = 50  # registers don't count
    assert token_delta(before, after, class_token=False, prefix_tokens=2).item() == 1 + 4


def test_delta_of_half_precision_does_not_overflow_and_carries_no_gradient():
    after = torch.full((1, 2, 3), 300.0, dtype=torch.float16, requires_grad=True)
    delta = token_delta(torch.zeros_like(after), after)
    assert delta.item() == 3 * 300.0**2
    assert not delta.requires_grad


# -- budgets ----------------------------------------------------------------------------------------------------------


def test_tokens_entering_each_block_of_a_base_vit_at_nine_tenths():
    entering = [197, *(1 + kept for kept in kept_through([0.9] * 11, 196))]
    assert entering == [197, 178, 161, 145, 131, 118, 107, 97, 88, 80, 73, 66]


@given(BUDGET, st.integers(2, 2000))
def test_kept_count_is_the_references_and_at_least_one(budget, length):
    kept = kept_count(budget, length)
    assert kept == max(1, min(int(budget * length), length - 1))
    assert 1 <= kept <= length - 1


@given(BUDGET, BUDGET, st.integers(2, 500), st.integers(2, 500))
def test_kept_count_is_monotone(budget, other, length, longer):
    low, high = sorted((budget, other))
    short, long = sorted((length, longer))
    assert kept_count(low, short) <= kept_count(high, long)


@given(st.lists(st.tuples(BUDGET, BUDGET), min_size=1, max_size=12), st.integers(1, 400))
def test_larger_budgets_bound_the_tokens_of_every_block(pairs, patches):
    low = kept_through([min(pair) for pair in pairs], patches)
    high = kept_through([max(pair) for pair in pairs], patches)
    assert all(a <= b for a, b in zip(low, high, strict=True))
    assert all(a >= b for a, b in itertools.pairwise([patches, *high]))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 400), st.integers(0, 400))
def test_band_holds(count, patches, fewest, width):
    most = fewest + width
    kept = within_band(min(count, patches), patches, fewest, most)
    assert kept <= most
    assert kept <= patches
    assert kept >= min(fewest, patches)


@given(st.floats(0.5, 1), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1))
def test_budget_stays_clipped(budget, delta, former, alpha):
    assert 0.5 <= update_budget(budget, delta, former, alpha, 0.5, 1.0) <= 1.0


def test_budget_rule_telescopes_between_clips():
    budget, former = 0.9, 0.0
    for delta in (3.0, 1.0, 7.0, 2.0):
        budget, former = update_budget(budget, delta, former, 1e-2, 0.5, 1.0), delta
    assert budget == pytest.approx(0.9 + 1e-2 * 2.0)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_delta_that_is_no_number_moves_no_budget(broken):
    assert update_budget(0.7, broken, 1.0, 1e-4, 0.5, 1.0) == 0.7


# -- tokens -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(0, 6), st.integers(1, 12), st.data())
def test_prefix_stays_and_the_most_attended_patches_follow(batch, prefix, patches, data):
    kept = data.draw(st.integers(1, patches))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    received = torch.rand(batch, prefix + patches, generator=generator).softmax(-1)
    x = torch.randn(batch, prefix + patches, 3, generator=generator)
    positions = top_tokens(received, kept, prefix)
    assert positions.shape == (batch, prefix + kept)
    assert (positions[:, :prefix] == torch.arange(prefix)).all()
    for image in range(batch):
        expected = received[image, prefix:].argsort(descending=True)[:kept] + prefix
        assert torch.equal(received[image, positions[image, prefix:]], received[image, expected])
        assert torch.equal(select_tokens(x, received, kept, prefix)[image], x[image, positions[image]])


def test_gradient_reaches_kept_tokens_only():
    x = torch.randn(1, 4, 2, requires_grad=True)
    select_tokens(x, torch.tensor([[0.1, 0.2, 0.4, 0.3]]), 2).sum().backward()
    assert x.grad is not None
    assert x.grad[0, :, 0].tolist() == [1, 0, 1, 1]


# -- draw -------------------------------------------------------------------------------------------------------------


def successive(weights, k):
    """Exact probability of each set under successive draws without replacement."""
    total: dict[tuple[int, ...], float] = defaultdict(float)
    for order in itertools.permutations(range(len(weights)), k):
        left, p = sum(weights), 1.0
        for block in order:
            p *= weights[block] / left
            left -= weights[block]
        total[tuple(sorted(order))] += p
    return total


@pytest.mark.parametrize(
    ("draw", "weight"), [("softmax", math.exp), ("proportional", lambda b: b), ("uniform", lambda b: 1.0)]
)
def test_draw_has_the_probabilities_of_successive_sampling(draw, weight):
    budgets, k, draws = [0.5, 1.0, 0.0, 2.0, 0.7], 3, 20_000  # wider than budgets get, so that a wrong law shows
    expected = successive([weight(b) + (1e-12 if draw == "proportional" else 0) for b in budgets], k)
    rng = random.Random(5)
    counts = Counter(draw_blocks(budgets, k, rng, draw=draw) for _ in range(draws))
    chi_square = sum((counts[s] - draws * p) ** 2 / (draws * p) for s, p in expected.items() if p > 1e-6)
    assert sum(counts[s] for s, p in expected.items() if p <= 1e-6) == 0
    assert chi_square < 27.9, "the 0.1 % point of chi-square with 9 degrees of freedom"


def test_top_takes_the_largest_budgets_and_the_deeper_of_equals():
    assert draw_blocks([0.9, 0.5, 0.9, 0.9], 2, random.Random(0), draw="top") == (2, 3)
    assert draw_blocks([0.9, 1.0, 0.8, 0.7], 2, random.Random(0), draw="top") == (0, 1)


@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=12),
    st.integers(0, 14),
    st.sampled_from(["softmax", "uniform", "proportional", "top"]),
    st.integers(0, 9),
    st.data(),
)
def test_draw_takes_k_candidates_or_all(budgets, k, draw, seed, data):
    among = data.draw(st.lists(st.sampled_from(range(len(budgets))), unique=True))
    chosen = draw_blocks(budgets, k, random.Random(seed), draw=draw, among=among)
    assert len(set(chosen)) == len(chosen) == min(k, len(among))
    assert set(chosen) <= set(among)
    assert list(chosen) == sorted(chosen)
