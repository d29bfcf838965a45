"""A battery's charge is a cap that a plan knows of beforehand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edgetune.device.power.battery import CHARGE_SHARE, spendable_j
from edgetune.device.system import System
from edgetune.errors import InfeasibleError
from edgetune.plan import make_plan
from tests.plan.conftest import make_profile

DEVICES = Path(__file__).parents[1] / "fixtures" / "devices"
MODEL = "vit_nano_patch8_64"
pytestmark = pytest.mark.skipif(not DEVICES.is_dir(), reason="an sdist comes without the board trees")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A board that runs on a battery."""
    shutil.copytree(DEVICES / "sbc-battery", tmp_path / "board")
    return tmp_path / "board"


def charged(board: Path, joules: float) -> System:
    """The board with so much left in its battery."""
    at = board / "sys/class/power_supply/axp20x-battery"
    volts = int((at / "voltage_now").read_text()) / 1e6
    (at / "charge_now").write_text(f"{round(joules / volts / 3600 * 1e6)}\n")
    return System(board)


def test_the_schedule_ends_where_the_charge_does(board: Path, photos: Path) -> None:
    profile = make_profile(watts=4.0, gflops=5.0)
    asked_for: dict[str, Any] = {"model": MODEL, "method": "full", "profile": profile, "epochs": 50}
    free = make_plan(photos, **asked_for)
    whole = free.predicted.total_energy_j or 0.0
    sensors = charged(board, 0.6 * whole)
    plan = make_plan(photos, **asked_for, sensors=sensors)
    assert plan.caps.energy_j is None  # nobody asked for one
    assert (plan.predicted.total_energy_j or 0.0) <= (spendable_j(sensors) or 0.0)
    assert plan.total_steps < free.total_steps
    assert any("A battery feeds the machine" in sentence for sentence in plan.why)
    asked = make_plan(photos, **asked_for, sensors=sensors, energy_j=0.4 * whole)
    assert (asked.predicted.total_energy_j or 0.0) <= 0.4 * whole  # the smaller of both
    elsewhere = make_plan(photos, **asked_for, sensors=sensors, elsewhere=True)
    assert elsewhere.total_steps == free.total_steps  # this machine's battery is not that board's


def test_a_charge_that_is_too_small_says_what_it_takes(board: Path, photos: Path) -> None:
    profile = make_profile(watts=4.0)
    with pytest.raises(
        InfeasibleError, match=r"\(the charge fails by itself\): the least that would do is a charge of"
    ):
        make_plan(photos, model=MODEL, profile=profile, sensors=charged(board, 0.5))


def test_a_charging_battery_caps_nothing(board: Path) -> None:
    sensors = charged(board, 100)
    assert spendable_j(sensors) == pytest.approx(CHARGE_SHARE * 100, rel=0.01)
    (board / "sys/class/power_supply/axp20x-battery/status").write_text("Charging\n")
    assert spendable_j(System(board)) is None
