"""Which runs the other engine may go on with."""

from __future__ import annotations

import msgspec
import pytest

from edgetune import schema
from edgetune.errors import InputError
from edgetune.schema import AlastPlan, Plan
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


def test_a_lean_run_changes_hands_and_says_so(run):
    folder = run()
    assert planned_engine(folder, None) == "torch"
    assert planned_engine(folder, "onnx") == "onnx"
    assert schema.load(folder / "plan.json", Plan).engine == "onnx"
    assert planned_engine(folder, None) == "onnx"
    assert planned_engine(folder, "torch") == "torch"


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
