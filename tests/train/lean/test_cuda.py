"""The same engine on a GPU: gradients of autograd on the same device, memory that stays put, bf16, files that agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgetune.schema import AlastPlan
from tests.train.lean.conftest import SPECS, make_batch
from tests.train.lean.test_gradients import RATE, gradients, worst

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")

SGD = "optimizer=sgd-plain"


@pytest.mark.parametrize("levers", [(), ("saved_activations=recompute",), ("frozen_weights=disk",)], ids=str)
@pytest.mark.parametrize("method", ["full", "last-2", "lora"])
@pytest.mark.parametrize("model", SPECS)
def test_gradients_are_those_of_autograd(model: str, method: str, levers: tuple[str, ...], pair) -> None:
    made = pair(model, method, SGD, *levers, device="cuda")
    for name, values in made.lean._trained_weights().items():
        assert values.is_cuda
        made.before.setdefault(name, values.cpu().clone())  # fresh factors, the same in both engines
    error, name = worst(*gradients(made, 2))
    assert error <= 1e-3, name


def test_saved_tensors_in_eight_bits(pair) -> None:
    ours, theirs = gradients(pair("plain", "full", SGD, "saved_precision=int8", device="cuda"), 2)
    for name, expected in theirs.items():
        assert torch.nn.functional.cosine_similarity(ours[name].flatten(), expected.flatten(), dim=0) > 0.999, name


def test_products_in_bf16_point_the_same_way(pair) -> None:
    made = pair("plain", "last-2", SGD, "precision=bf16", device="cuda")
    batch = make_batch(made.lean.spec, 5)
    losses = [engine.train_step(batch, RATE, 5).loss for engine in (made.lean, made.autograd)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    ours, theirs = made.weights()
    for name, before in made.before.items():
        if name in ours:
            mine, other = ((found[name] - before).flatten() for found in (ours, theirs))
            assert torch.nn.functional.cosine_similarity(mine, other, dim=0) > 0.98, name


@pytest.mark.parametrize("state", ["fp32", "int8", "factored"])
def test_updates_are_those_of_the_cpu(state: str, pair) -> None:
    adaptive = AlastPlan(mode="constrained", alpha=1e-3, reduction="mean")
    levers = ("trained_blocks=3", "k=2", "token_min=0.5", "token_max=0.5", f"optimizer_state={state}")
    engines = [pair("plain", "edgetune", *levers, alast=adaptive, device=device).lean for device in ("cuda", "cpu")]
    for engine in engines:
        for seed in range(3):
            engine.train_step(make_batch(engine.spec, 5, seed=seed), 1e-3, 2)
    ours, theirs = (engine._trained_weights() for engine in engines)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name].cpu(), expected, rtol=1e-3, atol=2e-4, msg=name)


def test_a_step_takes_no_more_memory_than_the_one_before_and_evaluation_gives_it_back(pair, tmp_path: Path) -> None:
    engine = pair("plain", "full", "saved_precision=int8", device="cuda").lean
    held = []
    for seed in range(4):
        engine.train_step(make_batch(engine.spec, 5, seed=seed), 1e-4, 2)
        held.append(torch.cuda.memory_allocated())
    assert held[1] == held[2] == held[3]
    found = engine.evaluate([make_batch(engine.spec, 4)], 2)
    assert found is not None
    assert torch.cuda.memory_allocated() < held[3]
    assert engine.device_peak_bytes() >= held[3]
    assert 0 < engine.device_room_bytes() <= torch.cuda.get_device_properties(0).total_memory
    engine.save_weights(tmp_path / "model", None)
    saved = load_file(tmp_path / "model")
    for name, values in engine._trained_weights().items():
        assert saved[name].equal(values.cpu()), name
