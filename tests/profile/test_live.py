"""What only a live profile does, with a root that is taken for this machine and a child that answers as told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgetune.device.power import Reading
from edgetune.device.power.base import Facts
from edgetune.profile import assemble
from edgetune.profile.run import Probed
from edgetune.schema import Compute, Power


class Sensor:
    """A steady sensor; remembers when it was read."""

    name, scope, measured = "test", "module", True

    def __init__(self) -> None:
        self.slept: list[float] = []

    def read(self) -> Reading:
        return Reading(4.0)

    def facts(self) -> Facts:
        return Facts()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.mark.parametrize(("window_s", "quick", "waits"), [(3.0, True, []), (20.0, False, [])])
def test_a_sensor_slower_than_the_time_there_is_gives_no_idle_power(
    window_s: float, quick: bool, waits: list[float]
) -> None:
    sensor = Sensor()
    power = assemble._with_idle(Power(interval_s=window_s), sensor, quick, sensor.sleep)
    assert power.idle_w is None
    assert sensor.slept == waits


def test_idle_power_waits_one_window_and_measures_three(monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = Sensor()
    measured: list[float] = []

    class Meter:
        def __init__(self, source: object, sleep: object) -> None:
            assert source is sensor

        def __enter__(self) -> Meter:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def idle(self, seconds: float) -> float:
            assert sensor.slept == [2.0]  # what was done before has left the sensor's memory
            measured.append(seconds)
            return 4.0

    monkeypatch.setattr(assemble, "EnergyMeter", Meter)
    assert assemble._with_idle(Power(interval_s=2.0), sensor, False, sensor.sleep).idle_w == 4.0
    assert measured == [6.0]


def test_the_childs_gpu_memory_and_warnings_reach_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    def probed(**_: object) -> Probed:
        return Probed(
            Compute(device="cuda"), ["the sensor coughed.", "the sensor coughed."],
            {"cuda_total_bytes": 8 << 30, "cuda_free_bytes": 5 << 30},
        )  # fmt: skip

    monkeypatch.setattr(assemble, "run_probes", probed)
    monkeypatch.setattr(assemble, "find_power", lambda *_: None)
    profile = assemble.profile_device(quick=True)
    assert (profile.memory.cuda_total_bytes, profile.memory.cuda_free_bytes) == (8 << 30, 5 << 30)
    assert profile.warnings.count("the sensor coughed.") == 1


def test_the_child_says_what_its_sensor_said() -> None:
    code = (
        "from edgetune.device.system import System\nfrom edgetune.profile.child import say_warnings\n"
        "system = System()\nsystem.warn('in1_input is odd.')\nsay_warnings(system)\nsay_warnings(system)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert done.stdout.splitlines() == ['{"warning":"in1_input is odd."}']


def test_without_cuda_the_child_claims_no_gpu_memory() -> None:
    from edgetune.profile.child import gpu_memory

    assert gpu_memory("cpu") == {}
