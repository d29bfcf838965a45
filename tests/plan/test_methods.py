"""The table of methods: what trains, and with which defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import InputError
from edgetune.plan import make_plan
from edgetune.plan.methods import METHOD_NAMES, find_method


def test_reference_alast_is_as_published() -> None:
    method = find_method("alast", 12)
    assert method.alast is not None
    assert (method.k, method.trained, method.embeddings_trainable) == (9, 12, True)
    assert (method.levers.optimizer, method.learning_rate, method.weight_decay) == ("adam", 1e-4, 0.0)
    assert (method.schedule, method.label_smoothing, method.warm_up(1000)) == ("constant", 0.0, 0)
    alast = method.alast
    assert (alast.mode, alast.initial_budget, alast.budget_min, alast.budget_max) == ("reference", 0.9, 0.5, 1.0)
    assert (alast.alpha, alast.draw, alast.reduction) == (1e-4, "softmax", "sum")


@pytest.mark.parametrize("depth", [1, 2, 6, 12, 24])
@pytest.mark.parametrize("name", [*METHOD_NAMES[:5], "last-1", *METHOD_NAMES[6:]])
def test_every_method_fits_every_depth(name: str, depth: int) -> None:
    method = find_method(name, depth)
    assert 0 <= method.k <= method.trained <= depth
    assert method.name == name
    assert method.summary


def test_controls_differ_from_alast_in_what_they_control_for() -> None:
    alast, control = find_method("alast", 12), find_method("random-k", 12)
    assert control.alast is not None
    assert (control.alast.mode, control.alast.draw, control.alast.alpha) == ("random", "uniform", 0.0)
    assert control._replace(alast=alast.alast, summary=alast.summary, name="alast") == alast


@pytest.mark.parametrize("name", ["last-0", "last-13", "last-", "last-4x", "Edgetune", "", "mezo"])
def test_unknown_methods_are_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match=r"--method .*(use|use one of) "):
        find_method(name, 12)


def test_rates_follow_the_batch_where_they_should() -> None:
    whole = find_method("full", 12).rate_for(32, 768, 12)
    assert find_method("full", 12).rate_for(8, 768, 12) == pytest.approx(whole / 2)
    assert find_method("alast", 12).rate_for(8, 768, 12) == 1e-4


def test_wider_models_and_more_trained_blocks_bear_lower_rates() -> None:
    """Whatever trains the blocks; adapters and the classifier alone have rates of their own."""
    assert find_method("full", 12).rate_for(32, 768, 12) == 2.7e-5
    assert find_method("edgetune", 12).rate_for(32, 384, 2) == find_method("last-2", 12).rate_for(32, 384, 2) == 3.3e-4
    assert find_method("edgetune", 6).rate_for(32, 192, 1) == 1.3e-3
    assert find_method("edgetune", 12).rate_for(32, 384, 0) == find_method("head", 12).rate_for(32, 384, 0) == 1e-3
    assert find_method("lora", 12).rate_for(32, 384, 12) == find_method("lora", 12).rate_for(32, 768, 12) == 1e-3


def test_the_plan_has_the_rate_of_the_blocks_that_train_in_it(photos: Path) -> None:
    def rate(*levers: str, **settings: Any) -> float:
        plan = make_plan(photos, model="vit_nano_patch8_64", levers=levers, batch_size=8, **settings)
        assert any("learning rate" in sentence for sentence in plan.why) == ("lr" not in settings)
        return plan.recipe.learning_rate

    assert rate() == pytest.approx(1.3e-3 / 2)
    assert rate("trained_blocks=4") == pytest.approx(3.3e-4 / 2)
    assert rate(method="full") == pytest.approx(2.2e-4 / 2)
    assert rate(lr=0.01) == 0.01


def test_warm_up_is_a_twentieth_and_never_longer_than_the_run() -> None:
    assert find_method("full", 12).warm_up(1000) == 50
    assert find_method("full", 12).warm_up(3) == 1
