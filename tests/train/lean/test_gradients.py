"""One step of the lean engine against autograd, parameter by parameter, under every lever that should be exact.

A step of plain SGD moves a weight by the learning rate times its gradient. The rate is made so large that the
difference of the weights is the gradient to the last bits, and that a weight updated too early would be noticed.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgetune.schema import AlastPlan
from tests.train.lean.conftest import SPECS, Pair, make_batch

RATE = 1000.0
EXACT = 1e-4
BAND = AlastPlan(mode="constrained", alpha=1e-3, reduction="mean")


def gradients(
    pair: Pair, micro_batch_size: int, batch: int = 5, loss_error: float = 1e-5
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of one step: the lean engine's and autograd's."""
    data = make_batch(pair.lean.spec, batch)
    ours = pair.lean.train_step(data, RATE, micro_batch_size)
    theirs = pair.autograd.train_step(data, RATE, batch)
    assert ours.loss == pytest.approx(theirs.loss, rel=loss_error)
    assert ours.trained == theirs.trained
    assert ours.kept == theirs.kept
    after = pair.weights()
    mine, other = ({name: (pair.before[name] - values[name]) / RATE for name in values} for values in after)
    return mine, other


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative error of a parameter's gradient; absolute where it is next to nothing of the whole."""
    total = torch.stack([value.norm() for value in theirs.values()]).norm()
    assert total > 1e-3
    errors = {}
    for name, expected in theirs.items():
        size = expected.norm() if expected.norm() > 1e-6 * total else total
        errors[name] = float((ours[name] - expected).norm() / size)
    name = max(errors, key=lambda name: errors[name])
    return errors[name], name


def assert_exact(pair: Pair, micro_batch_size: int) -> dict[str, Tensor]:
    ours, theirs = gradients(pair, micro_batch_size)
    error, name = worst(ours, theirs)
    assert error <= EXACT, name
    return theirs


@pytest.mark.parametrize("micro", [5, 2, 1])
@pytest.mark.parametrize("model", SPECS)
def test_every_weight_of_every_architecture(model: str, micro: int, pair) -> None:
    made = pair(model, "full", "optimizer=sgd-plain")
    found = assert_exact(made, micro)
    assert set(found) == {parameter.name for parameter in SPECS[model].parameters()}
    assert all(float(value.norm()) > 0 for value in found.values())


@pytest.mark.parametrize("micro", [5, 2])
@pytest.mark.parametrize("method", ["last-2", "last-4", "head"])
@pytest.mark.parametrize("model", SPECS)
def test_trailing_blocks(model: str, method: str, micro: int, pair) -> None:
    found = assert_exact(pair(model, method, "optimizer=sgd-plain"), micro)
    lowest = SPECS[model].depth - (0 if method == "head" else int(method[-1]))
    blocks = {int(name.split(".")[1]) for name in found if name.startswith("blocks.")}
    assert blocks == set(range(lowest, SPECS[model].depth))


@pytest.mark.parametrize("micro", [5, 2])
@pytest.mark.parametrize("model", SPECS)
def test_recomputed_blocks(model: str, micro: int, pair) -> None:
    assert_exact(pair(model, "full", "optimizer=sgd-plain", "saved_activations=recompute"), micro)


@pytest.mark.parametrize(("method", "lowest"), [("full", 0), ("last-3", 1), ("edgetune", 1)])
@pytest.mark.parametrize("model", SPECS)
def test_the_lower_half_recomputed(model: str, method: str, lowest: int, pair) -> None:
    """Some blocks keep their insides and some do not, with weights of all of them, of some, and with tokens dropped."""
    levers = ["optimizer=sgd-plain", "saved_activations=recompute", "recompute_share=0.5"]
    band = {}
    if method == "edgetune":
        levers += ["trained_blocks=3", "token_min=0.5", "token_max=0.5"]
        band = {"alast": BAND}
    made = pair(model, method, *levers, **band)
    assert made.job.recomputed == range(lowest, lowest + 2)
    assert_exact(made, 2)


@pytest.mark.parametrize("model", SPECS)
@pytest.mark.parametrize("levers", [("trained_blocks=4",), ("trained_blocks=3",), ("trained_blocks=2",)])
def test_dropped_tokens(model: str, levers: tuple[str, ...], pair) -> None:
    """A band of one width, so that both keep the same tokens; blocks from the one below the lowest trained drop."""
    made = pair(model, "edgetune", "optimizer=sgd-plain", *levers, "token_min=0.5", "token_max=0.5", alast=BAND)
    assert made.job.keep_max[-1] == 8 < SPECS[model].patches
    assert_exact(made, 2)


@pytest.mark.parametrize("model", ["plain", "registers", "distilled"])
def test_tokens_dropped_by_budgets_that_move(model: str, pair) -> None:
    """Several steps of adaptive budgets: both observe the same, so both drop the same.

    For models that read their class token: of averaged patches autograd drops some behind the last block, too.
    """
    adaptive = AlastPlan(mode="constrained", alpha=1.0, reduction="mean")
    made = pair(model, "edgetune", "optimizer=sgd", "trained_blocks=4", "token_min=0.2", "token_max=1", alast=adaptive)
    seen = set()
    for step in range(4):
        batch = make_batch(made.lean.spec, 5, seed=step)
        ours = made.lean.train_step(batch, 1e-3, 2)
        theirs = made.autograd.train_step(batch, 1e-3, 5)
        assert ours.kept[:-1] == theirs.kept[:-1]  # nothing is dropped behind the last block
        assert ours.budgets == pytest.approx(theirs.budgets, abs=1e-3)
        seen.add(tuple(ours.kept))
    assert len(seen) > 1
    error, name = worst(*({key: value - made.before[key] for key, value in found.items()} for found in made.weights()))
    assert error <= 1e-3, name


@pytest.mark.parametrize("micro", [5, 3])
@pytest.mark.parametrize("model", ["plain", "registers", "average"])
def test_blocks_that_were_not_drawn_pass_the_gradient_on(model: str, micro: int, pair) -> None:
    """Over several steps every block is left out at times: the lowest, the last and those between."""
    made = pair(
        model, "edgetune", "optimizer=sgd-plain", "trained_blocks=3", "k=1", "token_min=1", "token_max=1", alast=BAND
    )
    missed: set[int] = set()
    for step in range(8):
        start = made.weights()[0]
        made.autograd.model.load_state_dict(made.before)
        for name, values in made.lean._trained_weights().items():
            values.copy_(made.before[name])
        made.autograd.optimizer.state.clear()
        batch = make_batch(made.lean.spec, 5, seed=step)
        ours, theirs = made.lean.train_step(batch, RATE, micro), made.autograd.train_step(batch, RATE, 5)
        assert ours.trained == theirs.trained
        missed |= set(made.lean._trainable) - set(ours.trained)
        moved = [{key: (made.before[key] - value) / RATE for key, value in found.items()} for found in made.weights()]
        error, name = worst(*moved)
        assert error <= EXACT, (step, name)
        for index in set(made.lean._trainable) - set(ours.trained):
            assert not any(bool(value.any()) for name, value in moved[0].items() if name.startswith(f"blocks.{index}."))
        assert start.keys() == moved[0].keys()
    assert missed == {1, 2, 3}


def test_weight_decay_pulls_at_matrices_alone(pair) -> None:
    made = pair("registers", "full", "optimizer=sgd", weight_decay=0.3)
    for step in range(3):
        batch = make_batch(made.lean.spec, 5, seed=step)
        made.lean.train_step(batch, 0.01, 5)
        made.autograd.train_step(batch, 0.01, 5)
    ours, theirs = made.weights()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-6)


# The worst cosines seen with these models are 0.999994, 0.99991 and 0.961; benchmarks/gradients.py measures real ones.
@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.99995), ("int8", 0.9995), ("int4", 0.95)])
@pytest.mark.parametrize("model", SPECS)
def test_saved_tensors_in_fewer_bits(model: str, precision: str, least: float, pair) -> None:
    ours, theirs = gradients(pair(model, "full", "optimizer=sgd-plain", f"saved_precision={precision}"), 2)
    cosines = {
        name: float(torch.nn.functional.cosine_similarity(ours[name].flatten(), expected.flatten(), dim=0))
        for name, expected in theirs.items()
    }
    name = min(cosines, key=lambda name: cosines[name])
    assert cosines[name] >= least, name
    exact = {key for key in cosines if key.startswith(("norm", "fc_norm", "head"))}  # nothing was saved for them
    assert all(cosines[key] > 1 - 1e-6 for key in exact)
    assert min(cosines.values()) < 1 - 1e-7, "nothing was rounded"


@pytest.mark.parametrize("model", ["plain", "registers"])  # the latter with LayerScale
@pytest.mark.parametrize("micro", [5, 2])
def test_products_in_bf16(model: str, micro: int, pair) -> None:
    ours, theirs = gradients(pair(model, "full", "optimizer=sgd-plain", "precision=bf16"), micro, loss_error=0.01)
    for name, expected in theirs.items():
        found = float(torch.nn.functional.cosine_similarity(ours[name].flatten(), expected.flatten(), dim=0))
        assert found >= 0.99, name


def test_fewer_bits_and_recomputation_together(pair) -> None:
    levers = ("optimizer=sgd-plain", "saved_precision=int8", "saved_activations=recompute")
    ours, theirs = gradients(pair("plain", "full", *levers), 2)
    for name, expected in theirs.items():
        assert torch.nn.functional.cosine_similarity(ours[name].flatten(), expected.flatten(), dim=0) > 0.999, name


def test_what_is_saved_does_not_need_what_only_steps_need(pair, tmp_path: Path) -> None:
    made = pair("registers", "last-2", "optimizer=adamw")
    for engine in (made.lean, made.autograd):
        engine.train_step(make_batch(made.lean.spec, 5), 1e-3, 5)
        for name in ("before", "after"):
            engine.save_weights(tmp_path / f"{name}.weights", None)
            engine.save_state(tmp_path / f"{name}.state", {})
            engine.rest()
        for kind in ("weights", "state"):
            assert (tmp_path / f"before.{kind}").read_bytes() == (tmp_path / f"after.{kind}").read_bytes()
        assert math.isfinite(engine.train_step(make_batch(made.lean.spec, 5), 1e-3, 5).loss)


def test_a_loss_that_is_no_number_changes_nothing(pair) -> None:
    made = pair("plain", "full", "optimizer=adamw")
    batch = make_batch(made.lean.spec, 5)
    batch.images[0, 0, 0, 0] = float("nan")
    report = made.lean.train_step(batch, 1e-3, 2)
    assert report.loss != report.loss
    for name, values in made.weights()[0].items():
        assert values.equal(made.before[name])
    assert all(optimizer.steps == 0 for optimizer in made.lean._optimizers.values())


def test_evaluation_answers_as_autograd_does(pair) -> None:
    for model in SPECS:
        made = pair(model, "last-2")
        batches = [make_batch(made.lean.spec, 5, seed=seed) for seed in range(2)]
        ours, theirs = made.lean.evaluate(batches, 2), made.autograd.evaluate(batches, 5)
        assert ours is not None
        assert theirs is not None
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.predictions == theirs.predictions
        assert ours.confidences == pytest.approx(theirs.confidences, rel=1e-4)
        assert made.lean.evaluate(batches, 2, lambda: True) is None
