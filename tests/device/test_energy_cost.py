"""What sampling costs, in processor time, so that a busy machine changes nothing."""

from __future__ import annotations

import time

from edgetune.device.board import identify_entry
from edgetune.device.energy import EnergyMeter
from edgetune.device.power import find_power
from edgetune.device.system import System
from tests.device.conftest import FIXTURES
from tests.pace import slowness


def test_sampling_at_10_hz_uses_less_than_one_percent_of_a_core():
    system = System(FIXTURES / "orin-nano-super-jp6")
    board, entry = identify_entry(system)
    meter = EnergyMeter(find_power(system, board, entry), thread=False)
    with meter, meter.window():
        began = time.process_time()
        for _ in range(300):
            meter.sample()
        seconds = time.process_time() - began
    assert seconds / 300 * 10.4 < 0.01 * slowness()
