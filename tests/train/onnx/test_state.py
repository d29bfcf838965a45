"""A state of one engine in the other, and what is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgetune.errors import InputError
from edgetune.model.arrayfile import ArrayStore
from edgetune.schema import AlastPlan
from edgetune.train.lean.engine import LeanEngine
from edgetune.train.onnx.cache import build
from edgetune.train.onnx.engine import OnnxEngine
from tests.train.onnx.conftest import SPECS, make_batch

BAND = AlastPlan(mode="constrained", alpha=1e-3, reduction="mean")


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("last-2", "adamw"), ("last-2", "adam"), ("last-2", "sgd"), ("edgetune", "adamw"), ("lora", "adamw")],
)
def test_each_engine_goes_on_where_the_other_stopped(method, optimizer, pair, tmp_path):
    levers = ("trained_blocks=3", "k=2", "token_max=0.7") if method == "edgetune" else (f"optimizer={optimizer}",)
    made = pair("plain", method, *levers, alast=BAND if method == "edgetune" else None)
    spec = SPECS["plain"]
    for seed in range(3):
        made.step(make_batch(spec, 5, seed), 1e-3, 2)
    made.onnx.save_state(tmp_path / "onnx", {"step": 3})
    made.torch.save_state(tmp_path / "torch", {"step": 3})
    onnx = OnnxEngine(made.plan, made.base, build(spec, made.plan.optimizer, made.plan.lora))
    torch = LeanEngine(made.plan, made.base)
    assert onnx.load_state(made.base, tmp_path / "torch") == {"step": 3}
    assert torch.load_state(made.base, tmp_path / "onnx") == {"step": 3}
    batch = make_batch(spec, 5, 9)
    ours, theirs = onnx.train_step(batch, 1e-3, 2), torch.train_step(batch, 1e-3, 2)
    uninterrupted = made.onnx.train_step(batch, 1e-3, 2)
    for found in (ours, theirs):
        assert (found.trained, found.kept) == (uninterrupted.trained, uninterrupted.kept)
        assert found.loss == pytest.approx(uninterrupted.loss, rel=1e-5)
    expected = made.onnx._trained_weights()
    for name, values in expected.items():
        if not name.endswith("qkv.bias"):
            np.testing.assert_allclose(onnx._trained_weights()[name], values, atol=1e-4, err_msg=name)
            np.testing.assert_allclose(torch._trained_weights()[name].numpy(), values, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("method", ["last-2", "lora"])
def test_both_write_the_same_model(method, pair, tmp_path):
    made = pair("registers", method)
    made.step(make_batch(made.onnx.spec, 5), 1e-3, 2)
    made.onnx.save_weights(tmp_path / "onnx", 0.5)
    made.torch.save_weights(tmp_path / "torch", 0.5)
    ours, theirs = ArrayStore(tmp_path / "onnx"), ArrayStore(tmp_path / "torch")
    assert (ours.names, ours.header.metadata) == (theirs.names, theirs.header.metadata)
    for name in ours.names:
        if not name.endswith("qkv.bias"):
            np.testing.assert_allclose(ours.read_array(name), theirs.read_array(name), atol=1e-4, err_msg=name)


def test_a_state_of_another_optimizer_is_refused(pair, tmp_path):
    made = pair("plain", "last-2", "optimizer=sgd")
    made.step(make_batch(made.onnx.spec, 5), 1e-3, 2)
    made.torch.save_state(tmp_path / "state", {})
    other = msgspec.structs.replace(made.plan, optimizer="adamw")
    engine = OnnxEngine(other, made.base, build(SPECS["plain"], "adamw", None))
    with pytest.raises(InputError, match="does not hold this run's state"):
        engine.load_state(made.base, tmp_path / "state")


def test_memory_that_runs_out_is_said_and_nothing_is_updated_twice(pair, monkeypatch, tmp_path):
    from edgetune.train.scarcity import OutOfMemoryError

    made, calls = pair("plain", "last-2", "optimizer=sgd-plain"), []
    batch = make_batch(made.onnx.spec, 5)
    run = made.onnx._runtime.run

    def failing(name, inputs, outputs):
        calls.append(name)
        if name.startswith("attention.gradients") and calls.count(name) == 1:
            raise RuntimeError("std::bad_alloc")
        run(name, inputs, outputs)

    monkeypatch.setattr(made.onnx._runtime, "run", failing)
    with pytest.raises(OutOfMemoryError):
        made.onnx.train_step(batch, 1.0, 5)
    moved = made.onnx._groups["head"].values.copy()
    moved_head = made.onnx._trained_weights()["head.weight"].copy()
    made.onnx.save_state(tmp_path / "state", {})
    made.onnx.train_step(batch, 1.0, 2)
    assert (made.onnx._groups["head"].values == moved).all()
    assert {group.steps for group in made.onnx._groups.values()} == {1}
    for engine in (OnnxEngine(made.plan, made.base, build(SPECS["plain"], "sgd-plain", None)), made.torch):
        engine.load_state(made.base, tmp_path / "state")  # as --resume does, where nothing smaller was left to try
        engine.train_step(batch, 1.0, 2)
        np.testing.assert_array_equal(np.asarray(engine._trained_weights()["head.weight"]), moved_head)
        engine.train_step(batch, 1.0, 2)
        assert not np.array_equal(np.asarray(engine._trained_weights()["head.weight"]), moved_head)
