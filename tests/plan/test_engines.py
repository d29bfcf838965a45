"""Which engine is planned for, and what the one without torch refuses."""

from __future__ import annotations

import pytest

from edgetune.errors import InfeasibleError, InputError
from edgetune.plan import engines, make_plan
from tests.plan.conftest import make_profile

NANO = {"model": "vit_nano_patch8_64", "batch_size": 8}


@pytest.fixture
def plan(image_folder):
    return lambda **options: make_plan(image_folder, **{**NANO, **options})


@pytest.fixture
def image_folder(tmp_path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(8):
                (tmp_path / part / name / f"{index}.png").touch()
    return tmp_path


def without(monkeypatch, *packages):
    monkeypatch.setattr(engines, "_installed", lambda name: name not in packages)


def test_auto_prefers_torch_and_does_without(plan, monkeypatch):
    without(monkeypatch)
    assert plan().engine == "torch"
    without(monkeypatch, "torch")
    assert plan().engine == "onnx"
    without(monkeypatch, "torch", "onnxruntime")
    assert plan().engine == "torch"  # whose absence fit explains


def test_auto_takes_onnx_where_the_cap_leaves_no_room_for_torch(plan, monkeypatch):
    without(monkeypatch)
    made = plan(memory_bytes=200_000_000)
    assert made.engine == "onnx"
    assert made.predicted.peak_memory_bytes <= 200_000_000
    without(monkeypatch, "onnxruntime")
    with pytest.raises(InfeasibleError):
        plan(memory_bytes=200_000_000)


def test_what_each_engine_would_need_is_told_of_the_one_that_needs_least(plan, monkeypatch):
    without(monkeypatch)
    with pytest.raises(InfeasibleError) as caught:
        plan(memory_bytes=1_000_000)
    assert "--memory" in str(caught.value)
    assert "with --engine onnx" in str(caught.value)
    with pytest.raises(InfeasibleError) as of_torch:
        plan(memory_bytes=1_000_000, engine="torch")
    with pytest.raises(InfeasibleError) as of_onnx:
        plan(memory_bytes=1_000_000, engine="onnx")
    needed = [error.value.nearest.memory_bytes for error in (caught, of_torch, of_onnx)]
    assert needed[0] == needed[2] < needed[1]


def test_why_says_which_engine_and_since_when(plan, monkeypatch):
    without(monkeypatch)
    assert any("done by torch; --engine onnx needs less" in sentence for sentence in plan().why)
    small = plan(memory_bytes=200_000_000)
    assert any("without torch, since under the caps" in sentence for sentence in small.why)
    assert any("as --engine asks" in sentence for sentence in plan(engine="onnx").why)
    without(monkeypatch, "torch")
    assert any("since torch is not installed" in sentence for sentence in plan().why)


def test_times_from_probes_of_torch_are_less_sure_for_the_other_engine(plan):
    torch, onnx = (plan(engine=engine, profile=make_profile()) for engine in ("torch", "onnx"))
    assert onnx.predicted.time_factor == pytest.approx(1.5 * torch.predicted.time_factor)
    assert any("probes ran in torch" in warning for warning in onnx.warnings)
    assert not any("probes ran in torch" in warning for warning in torch.warnings)


def test_levers_of_torch_alone_keep_auto_from_onnx(plan, monkeypatch):
    without(monkeypatch)
    with pytest.raises(InfeasibleError):
        plan(memory_bytes=200_000_000, levers=["saved_precision=int8"])


@pytest.mark.parametrize(
    "lever",
    ["saved_precision=int8", "optimizer_state=factored", "precision=bf16", "frozen_weights=int8", "trainer=autograd"],
)
def test_what_it_has_not_is_refused_in_a_sentence(plan, lever):
    with pytest.raises(InputError, match=f"--engine onnx has no {lever}"):
        plan(engine="onnx", levers=[lever])


@pytest.mark.parametrize(
    "method", ["edgetune", "alast", "full", "checkpoint", "head", "last-2", "lora", "alast-lora", "random-k"]
)
def test_every_method_has_a_plan(plan, method):
    made = plan(engine="onnx", method=method)
    assert (made.engine, made.trainer) == ("onnx", "lean")
    assert (made.saved_precision, made.optimizer_state, made.precision) == ("fp32", "fp32", "fp32")


def test_the_device_must_be_the_cpu(plan):
    with pytest.raises(InputError, match="CPU alone"):
        plan(engine="onnx", device="cuda")
    with pytest.raises(InputError, match="use auto, torch or onnx"):
        plan(engine="tflite")


def test_a_cap_is_met_by_what_this_engine_has(plan):
    made = plan(engine="onnx", method="edgetune", model="vit_tiny_patch16_224", memory_bytes=160_000_000)
    assert made.frozen_weights in ("fp32", "disk")
    assert made.saved_precision == "fp32"
