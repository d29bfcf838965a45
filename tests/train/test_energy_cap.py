"""An energy cap through the whole of `fit`, on a board whose sensor is read like a Jetson's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgetune.device.power.base import Reading
from edgetune.device.system import System
from edgetune.errors import InputError
from edgetune.train.fit import exit_code, fit
from tests.virtual_board import virtual_board


def test_fit_ends_within_the_joules_it_was_given(plan_for: Any, tmp_path: Path) -> None:
    plan = plan_for(epochs=2000)
    cap_j = 60.0
    plan = msgspec.structs.replace(plan, caps=msgspec.structs.replace(plan.caps, energy_j=cap_j))
    (tmp_path / "board").mkdir()
    with virtual_board(tmp_path / "board") as board:
        began = time.monotonic()
        result = fit(plan, tmp_path / "run", quiet=True, system=System(board.root))
        spent_s = sum(result.time.epochs_s) + result.time.eval_s
        truth_j = board.true_joules(began, time.monotonic())
    assert (result.stopped_by, exit_code(result)) == ("energy", 4)
    assert result.energy.measured
    assert result.energy.source
    assert result.energy.total_j is not None
    assert 0.6 * cap_j < result.energy.total_j <= cap_j
    assert 5.0 * spent_s < result.energy.total_j < 1.05 * truth_j
    assert result.energy.net_j is not None
    assert result.energy.net_j < result.energy.total_j
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_a_sensor_that_says_nothing_holds_no_cap(
    plan_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        name, scope, measured = "ina3221", "module", True

        def read(self) -> Reading:
            return Reading(None)

    monkeypatch.setattr("edgetune.train.fit.find_power", lambda *_: Silent())
    monkeypatch.setattr("edgetune.train.fit._ANSWERS_WITHIN_S", 0.3)
    plan = plan_for(epochs=2)
    plan = msgspec.structs.replace(plan, caps=msgspec.structs.replace(plan.caps, energy_j=60.0))
    with pytest.raises(InputError, match=r"the sensor ina3221 gives no watts; add --power"):
        fit(plan, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
