"""Which runs the other engine may go on with."""

from __future__ import annotations

import msgspec
import pytest

from edgetune import schema
from edgetune.errors import InputError, MissingDependencyError
from edgetune.schema import AlastPlan, Caps
from edgetune.train import fit
from edgetune.train.fit import planned_engine
from tests.train.onnx.conftest import SPECS


@pytest.fixture
def run(plan_of, tmp_path):
    """A run folder of a plan with some fields changed."""

    def make(**changes):
        plan, _ = plan_of(SPECS["plain"], "last-2")
        (tmp_path / "state").mkdir(exist_ok=True)
        for name in ("state", "base"):
            (tmp_path / "state" / f"{name}.safetensors").touch()
        schema.save(msgspec.structs.replace(plan, **changes), tmp_path / "plan.json")
        return tmp_path

    return make


def test_a_lean_run_may_change_hands(run):
    folder = run()
    before = (folder / "plan.json").read_bytes()
    assert [planned_engine(folder, engine) for engine in (None, "onnx", "torch")] == ["torch", "onnx", "torch"]
    assert (folder / "plan.json").read_bytes() == before


@pytest.mark.parametrize("engine", ["torch", "onnx"])
@pytest.mark.parametrize("reason", ["not installed", "no room"])
def test_an_engine_that_can_not_go_on_leaves_the_run_to_the_one_that_can(run, engine, reason, monkeypatch):
    other = "onnx" if engine == "torch" else "torch"
    folder = run(
        model="vit_nano_patch8_64", engine=other, caps=Caps(memory_bytes=1 << 20 if reason == "no room" else None)
    )
    before = (folder / "plan.json").read_bytes()
    if reason == "not installed":
        monkeypatch.setitem(fit._STARTERS, engine, "edgetune.train.nowhere")
    error, said = (InputError, "bare process") if reason == "no room" else (MissingDependencyError, "pip install")
    with pytest.raises(error, match=said):
        fit.resume(folder, engine=engine, quiet=True)
    assert (folder / "plan.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "engine", "said"),
    [
        ({"trainer": "autograd"}, "onnx", "under autograd"),
        ({"saved_precision": "int8"}, "onnx", "has no saved_precision=int8"),
        ({"device": "cuda"}, "onnx", "CPU alone"),
        ({"engine": "onnx", "method": "alast", "alast": AlastPlan(mode="reference")}, "torch", "--method alast"),
    ],
)
def test_what_can_not_change_hands(run, changes, engine, said):
    folder = run(**changes)
    before = (folder / "plan.json").read_bytes()
    with pytest.raises(InputError, match=said):
        planned_engine(folder, engine)
    assert (folder / "plan.json").read_bytes() == before
