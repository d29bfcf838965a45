"""What a step takes, row by row: the rows are all there, and add up to what the plan says of the whole."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from edgetune.errors import InputError
from edgetune.plan import make_plan
from edgetune.plan.explain import print_plan
from tests.plan.conftest import make_profile

MODEL = "vit_tiny_patch16_224"


@pytest.mark.parametrize("method", ["edgetune", "alast", "full", "checkpoint", "head", "last-2", "lora", "random-k"])
@pytest.mark.parametrize("levers", [[], ["trainer=lean", "feature_cache=off"]])
def test_the_rows_of_a_step_add_up(photos: Path, method: str, levers: list[str]) -> None:
    try:
        plan = make_plan(
            photos, model=MODEL, profile=make_profile(watts=5.0), method=method, levers=levers, batch_size=7
        )
    except InputError:
        pytest.skip("autograd alone has this method")
    found = plan.predicted
    assert found.step_s is not None
    seconds = [part.forward_s + part.pass_gradient_s + part.weight_gradient_s for part in found.step_parts]
    assert sum(seconds) == pytest.approx(found.step_s)
    assert sum(part.energy_j or 0.0 for part in found.step_parts) == pytest.approx(5.0 * found.step_s)
    blocks = [part for part in found.step_parts if part.name.startswith("block ")]
    assert len(blocks) == len(plan.blocks) - plan.lowest_trainable_block
    assert all(part.weight_gradient_s > 0 for part in blocks) or method == "random-k"


def test_without_a_profile_there_are_no_rows_and_a_hint(photos: Path) -> None:
    plan = make_plan(photos, model=MODEL)
    assert plan.predicted.step_parts == []
    out = io.StringIO()
    print_plan(plan, Console(file=out, width=80), costs=True)
    assert "edgetune profile" in out.getvalue()
