"""What lies below the lowest trained block, in every way of keeping its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from edgetune.model.packing import Packed
from edgetune.model.spec import ViTSpec
from edgetune.model.store import WeightsStore
from edgetune.model.vit import VisionTransformer
from edgetune.model.weights import save_weights
from edgetune.train.lean.engine import LeanEngine
from edgetune.train.lean.frozen import FrozenBlocks
from edgetune.train.lean.start import convert_base
from tests.train.lean.conftest import SPECS, make_batch, random_model


@pytest.fixture
def engine_for(plan_of, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that starts an engine as a run does, from a file of weights; gives the model, too."""

    def make(name: str, *levers: str, method: str = "last-1") -> tuple[LeanEngine, VisionTransformer]:
        spec = SPECS[name]
        for module in ("engine", "start"):
            monkeypatch.setattr(f"edgetune.train.lean.{module}.find_spec", lambda name: spec)
        model = random_model(spec)
        save_weights(tmp_path / "weights.safetensors", model, {})
        plan, _ = plan_of(spec, method, *levers)
        classes = list("abcdefgh")[: spec.classes]
        data = msgspec.structs.replace(plan.data, classes=classes)
        plan = msgspec.structs.replace(plan, weights=str(tmp_path / "weights.safetensors"), data=data)
        convert_base(plan, tmp_path / "state" / "base.safetensors")
        return LeanEngine(plan, tmp_path / "state" / "base.safetensors"), model

    return make


def features(engine: LeanEngine, part: int = 2, all_tokens: bool = False) -> Tensor:
    images = torch.from_numpy(make_batch(engine.spec, 5).images)
    return engine.features(images, part, all_tokens=all_tokens)


@torch.no_grad()
def expected_features(model: VisionTransformer, spec: ViTSpec, lowest: int) -> Tensor:
    x = model.embed(torch.from_numpy(make_batch(spec, 5).images))
    for block in list(model.blocks)[:lowest]:
        x, _ = block(x)
    return x


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("model", SPECS)
def test_full_precision_features_are_the_models(model: str, engine_for) -> None:
    for method, lowest in (("last-1", 3), ("last-3", 1), ("full", 0)):
        engine, reference = engine_for(model, method=method)
        assert error(features(engine), expected_features(reference, SPECS[model], lowest)) < 1e-5


# A frozen block's weights are rounded to 8 of 24 bits, or to 255 steps: errors of about 2e-3 and 5e-3 of each product,
# which the residual stream dilutes.
@pytest.mark.parametrize(
    ("levers", "least", "most"),
    [
        (("frozen_weights=bf16",), 1e-6, 4e-3),
        (("frozen_weights=int8",), 1e-6, 1e-2),
        (("frozen_precision=bf16",), 1e-6, 1e-2),
        (("frozen_weights=bf16", "frozen_precision=bf16"), 1e-6, 1e-2),
        (("frozen_weights=int8", "frozen_precision=bf16"), 1e-6, 2e-2),
        (("frozen_weights=disk", "frozen_precision=bf16"), 1e-6, 1e-2),
    ],
)
@pytest.mark.parametrize("model", ["plain", "registers"])
def test_fewer_bits_cost_what_they_must(
    model: str, levers: tuple[str, ...], least: float, most: float, engine_for
) -> None:
    engine, reference = engine_for(model, *levers)
    assert least < error(features(engine), expected_features(reference, SPECS[model], 3)) < most


@pytest.mark.parametrize("model", SPECS)
def test_weights_on_disk_give_the_same_bits(model: str, engine_for) -> None:
    in_memory, _ = engine_for(model, "frozen_weights=fp32")
    first = features(in_memory).clone()
    on_disk, _ = engine_for(model, "frozen_weights=disk")
    assert features(on_disk).equal(first)
    small, _ = engine_for(model, "frozen_weights=bf16", "frozen_precision=bf16")
    first = features(small).clone()
    on_disk, _ = engine_for(model, "frozen_weights=disk", "frozen_precision=bf16")
    assert features(on_disk).equal(first)


@pytest.mark.parametrize("model", SPECS)
def test_parts_of_a_batch_change_nothing(model: str, engine_for) -> None:
    engine, _ = engine_for(model)
    whole = features(engine, 5).clone()
    for part in (1, 2, 3):
        torch.testing.assert_close(features(engine, part), whole, rtol=1e-4, atol=1e-5)


def test_where_only_the_classifier_trains_only_what_it_reads_comes_out(engine_for) -> None:
    for model, readers in (("plain", 1), ("distilled", 2), ("registers", 1), ("average", None)):
        engine, reference = engine_for(model, method="head")
        expected = expected_features(reference, SPECS[model], 4)[:, :readers]
        assert features(engine).shape == expected.shape
        assert error(features(engine), expected) < 1e-5


def test_residences_take_the_memory_they_say(engine_for, tmp_path: Path) -> None:
    engine_for("plain")
    store = WeightsStore(tmp_path / "state" / "base.safetensors")

    def held(residence: Any) -> int:
        blocks = FrozenBlocks(store, range(3), residence, torch.float32, torch.device("cpu"))
        return sum(value.nbytes for value in blocks._kept.values())

    matrices = 3 * 12 * 64**2
    assert held("disk") == 0
    vectors = held("fp32") - 4 * matrices
    assert vectors == 3 * 4 * (3 + 1 + 4 + 1 + 4) * 64
    assert held("bf16") == 2 * matrices + vectors
    assert held("int8") == matrices + 4 * matrices // 64 + vectors


def test_packed_weights_are_not_unpacked_for_good(engine_for) -> None:
    engine, _ = engine_for("plain", "frozen_weights=int8")
    features(engine)
    assert isinstance(engine.frozen.blocks._kept["blocks.0.attn.qkv.weight"], Packed)


@pytest.mark.parametrize("residence", ["disk", "int8", "bf16"])
def test_halves_made_ready_share_their_memory_and_give_it_back(engine_for, residence: str) -> None:
    engine, _ = engine_for("plain", f"frozen_weights={residence}")
    once = features(engine)
    blocks = engine.frozen.blocks
    places = {blocks.half(index, "mlp")["mlp.fc1.weight"].data_ptr() for index in (0, 1)}
    assert len(places) == 1
    assert not {*blocks.half(0, "mlp")} & {*blocks.half(0, "attention")}
    engine.frozen.free()
    assert blocks._buffer.nbytes == 0
    assert features(engine).equal(once)


def test_a_trained_model_is_written_whole_with_its_frozen_part_as_it_was(engine_for, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    engine, reference = engine_for("registers", "optimizer=sgd")
    engine.train_step(make_batch(engine.spec, 5), 0.1, 2)
    engine.save_weights(tmp_path / "out.safetensors", 0.5)
    written, before = load_file(tmp_path / "out.safetensors"), reference.state_dict()
    assert set(written) == set(before)
    for name, value in written.items():
        trains = name.startswith(("blocks.3.", "norm.", "head."))
        assert value.equal(before[name]) != trains, name
