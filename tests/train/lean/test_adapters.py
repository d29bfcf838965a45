"""Low-rank adapters in the lean engine: autograd's gradients, its fresh factors, and a file that needs no adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgetune.model.lora import merged_state
from tests.train.lean.conftest import SPECS, Pair, make_batch
from tests.train.lean.test_gradients import assert_exact

PRECISE = ("optimizer=sgd-plain",)


def with_random_factors(made: Pair) -> Pair:
    """Both engines with the same factors, none of them zero, so that every gradient is something."""
    generator = torch.Generator().manual_seed(1)
    theirs = made.autograd.model.state_dict()
    for name, values in made.lean._trained_weights().items():
        if name.endswith(("lora_a", "lora_b")):
            values.copy_(torch.randn(values.shape, generator=generator) * 0.05)
            theirs[name].copy_(values)
            made.before[name] = values.clone()
    return made


@pytest.mark.parametrize("micro", [5, 2])
@pytest.mark.parametrize("levers", [(), ("trained_blocks=2",), ("saved_activations=recompute",),
                                    ("frozen_weights=disk",)], ids=str)  # fmt: skip
@pytest.mark.parametrize("model", SPECS)
def test_gradients_are_those_of_autograd(model: str, levers: tuple[str, ...], micro: int, pair) -> None:
    made = with_random_factors(pair(model, "lora", *PRECISE, *levers))
    found = assert_exact(made, micro)
    adapted = {name for name in found if ".lora_" in name}
    assert len(adapted) == 4 * (2 if "trained_blocks=2" in levers else SPECS[model].depth)
    assert {name.split(".")[0] for name in set(found) - adapted} <= {"norm", "fc_norm", "head", "head_dist"}
    assert all(float(found[name].norm()) > 0 for name in adapted)


def test_training_starts_where_autograd_starts(pair) -> None:
    made = pair("plain", "lora")
    ours, theirs = made.weights()
    assert any(name.endswith("lora_a") for name in ours)
    for name, values in ours.items():
        assert values.equal(theirs[name]), name
        assert bool(values.any()) != name.endswith(("lora_b", ".bias")) or not name.startswith("blocks."), name


@pytest.mark.parametrize("frozen", ["fp32", "int8"])
def test_the_file_has_the_adapters_merged_in(frozen: str, pair, tmp_path: Path) -> None:
    made = with_random_factors(pair("registers", "lora", f"frozen_weights={frozen}", "optimizer=adamw"))
    for seed in range(2):
        made.lean.train_step(make_batch(made.lean.spec, 5, seed=seed), 1e-3, 2)
    theirs = made.autograd.model.state_dict()
    for name, values in made.lean._trained_weights().items():
        theirs[name].copy_(values)
    made.lean.save_weights(tmp_path / "model", None)
    found = load_file(tmp_path / "model")
    expected = merged_state(made.autograd.model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-6, msg=name)
    changed = {name for name, values in found.items() if not values.equal(made.before[name])}
    assert {"blocks.0.attn.qkv.weight", "blocks.3.attn.proj.weight", "head.weight"} <= changed
    assert not any("mlp" in name or "norm1" in name for name in changed)


def test_a_state_is_taken_up_again(pair, tmp_path: Path) -> None:
    made = pair("plain", "lora", "optimizer=adamw")
    for seed in range(2):
        made.lean.train_step(make_batch(made.lean.spec, 5, seed=seed), 1e-3, 5)
    made.lean.save_state(tmp_path / "state", {"step": 2})
    twin = pair("plain", "lora", "optimizer=adamw").lean
    assert twin.load_state(tmp_path / "base", tmp_path / "state") == {"step": 2}
    for engine in (made.lean, twin):
        engine.train_step(make_batch(engine.spec, 5, seed=9), 1e-3, 5)
    for name, values in made.lean._trained_weights().items():
        assert values.equal(twin._trained_weights()[name]), name
