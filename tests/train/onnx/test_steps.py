"""Steps of the ONNX engine against the lean engine in torch, parameter by parameter."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.schema import AlastPlan
from tests.train.onnx.conftest import SPECS, make_batch, worst

RATE = 1000.0  # of plain SGD: the difference of the weights is the gradient to the last bits
BAND = AlastPlan(mode="constrained", alpha=1e-3, reduction="mean")
PLAIN = "optimizer=sgd-plain"


def assert_same_step(pair, micro, batch=5, rate=RATE, steps=1):
    before = pair.weights()[1]
    for seed in range(steps):
        ours, theirs = pair.step(make_batch(pair.onnx.spec, batch, seed), rate, micro)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert (ours.trained, ours.kept, ours.flops) == (theirs.trained, theirs.kept, theirs.flops)
        assert ours.budgets == (None if theirs.budgets is None else pytest.approx(theirs.budgets, rel=1e-4))
    ours, theirs = pair.weights()
    assert ours.keys() == theirs.keys()
    # a bias of keys has no gradient but noise, which Adam's rule makes as large as any other
    compared = {name: values for name, values in theirs.items() if not name.endswith("qkv.bias") or rate > 100}
    error, name = worst(ours, compared, before)
    assert error <= 1e-4 * (1 if rate > 100 else 10), name
    return before, ours


@pytest.mark.parametrize("micro", [5, 2])
@pytest.mark.parametrize("model", SPECS)
def test_every_weight_of_every_architecture(model: str, micro: int, pair) -> None:
    before, after = assert_same_step(pair(model, "full", PLAIN), micro)
    assert set(after) == {parameter.name for parameter in SPECS[model].parameters()}
    assert all((before[name] != after[name]).any() for name in after)


@pytest.mark.parametrize("method", ["last-2", "head"])
@pytest.mark.parametrize("model", SPECS)
def test_trailing_blocks(model: str, method: str, pair) -> None:
    assert_same_step(pair(model, method, PLAIN), 2)


@pytest.mark.parametrize("model", SPECS)
def test_recomputed_blocks(model: str, pair) -> None:
    assert_same_step(pair(model, "last-4", PLAIN, "saved_activations=recompute"), 2)
    assert_same_step(pair(model, "last-4", PLAIN, "saved_activations=recompute", "recompute_share=0.5"), 2)


@pytest.mark.parametrize("trained", [4, 3, 2])
@pytest.mark.parametrize("model", SPECS)
def test_dropped_tokens(model: str, trained: int, pair) -> None:
    levers = (PLAIN, f"trained_blocks={trained}", "token_max=0.6", "token_min=0.3")
    assert_same_step(pair(model, "edgetune", *levers, alast=BAND), 2)


@pytest.mark.parametrize("mode", ["constrained", "random", "reference"])
def test_blocks_that_rest(mode, pair) -> None:
    plan = AlastPlan(mode=mode, alpha=1e-3, reduction="mean", draw="softmax" if mode != "random" else "uniform")
    levers = (PLAIN, "trained_blocks=3", "k=1", "token_max=0.7")
    assert_same_step(pair("distilled", "edgetune", *levers, alast=plan), 2, rate=0.01, steps=6)


@pytest.mark.parametrize("model", ["plain", "registers", "no-class-token"])
def test_adapters(model: str, pair) -> None:
    assert_same_step(pair(model, "lora", "optimizer=adamw", weight_decay=0.1), 2, rate=1e-2, steps=4)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "sgd-plain"])
def test_optimizers(optimizer: str, pair) -> None:
    rate = 1e-3 if optimizer.startswith("adam") else 1.0
    assert_same_step(pair("plain", "last-2", f"optimizer={optimizer}", weight_decay=0.1), 5, rate=rate, steps=5)


def test_a_loss_that_is_no_number_changes_nothing(pair) -> None:
    made = pair("plain", "last-2", PLAIN)
    before = made.weights()[0]
    batch = make_batch(made.onnx.spec, 5)
    batch.images[0, 0, 0, 0] = np.nan
    assert not np.isfinite(made.onnx.train_step(batch, RATE, 2).loss)
    after = made.weights()[0]
    assert all((before[name] == after[name]).all() for name in before)


def test_frozen_weights_may_stay_on_disk(pair) -> None:
    assert_same_step(pair("plain", "last-2", PLAIN, "frozen_weights=disk"), 2)


@pytest.mark.parametrize("model", SPECS)
def test_answers(model: str, pair) -> None:
    made = pair(model, "last-2")
    batches = [make_batch(made.onnx.spec, size, seed) for seed, size in enumerate((5, 3))]
    ours, theirs = made.onnx.evaluate(batches, 2), made.torch.evaluate(batches, 2)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert (ours.labels, ours.predictions) == (theirs.labels, theirs.predictions)
    assert ours.confidences == pytest.approx(theirs.confidences, rel=1e-4)
