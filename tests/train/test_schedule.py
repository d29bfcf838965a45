"""The learning rate over a run."""

from __future__ import annotations

import pytest

from edgetune.schema import Recipe
from edgetune.train.schedule import learning_rate


def rates(total: int, **settings: object) -> list[float]:
    recipe = Recipe(learning_rate=1.0, weight_decay=0.0, **({"warmup_steps": 4} | settings))  # type: ignore[arg-type]
    return [learning_rate(recipe, step, total) for step in range(total)]


def test_warms_up_linearly_and_then_only_falls() -> None:
    found = rates(20)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4:] == sorted(found[4:], reverse=True)
    assert 0 < found[-1] < 0.02


def test_constant_stays() -> None:
    assert rates(10, schedule="constant", warmup_steps=0) == [1.0] * 10


def test_a_run_shorter_than_its_warm_up_is_no_error() -> None:
    assert rates(2) == [0.25, 0.5]


def test_a_run_that_a_cap_will_end_warms_up_for_the_same_share_of_it() -> None:
    recipe = Recipe(learning_rate=1.0, weight_decay=0.0, warmup_steps=50)
    found = [learning_rate(recipe, step, 100, planned_steps=1000) for step in range(100)]
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5:] == sorted(found[5:], reverse=True)
    assert found[-1] < 0.001
    assert learning_rate(recipe, 0, 4, planned_steps=1000) == 1.0


def test_steps_outside_the_run_are_refused() -> None:
    recipe = Recipe(learning_rate=1.0, weight_decay=0.0, warmup_steps=0)
    for step in (-1, 5):
        with pytest.raises(ValueError, match="of 5"):
            learning_rate(recipe, step, 5)
