"""Caps: what is refused, and when."""

from __future__ import annotations

import pytest

from edgetune.device.pressure import Pressure
from edgetune.schema import Caps
from edgetune.train.governor import Governor, Spent

GIB = 1 << 30


class Memory:
    def __init__(self, current: int | None) -> None:
        self.current = current

    def take_recent_peak_bytes(self) -> int | None:
        return self.current


class Machine:
    """A clock and what is left of the memory, both set by the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pressure = Pressure(available_bytes=4 * GIB, total_bytes=8 * GIB)
        self.looks = 0

    def look(self) -> Pressure:
        self.looks += 1
        return self.pressure


def governor(current: int | None = None, machine: Machine | None = None, **caps: float) -> Governor:
    machine = machine or Machine()
    return Governor(Caps(**caps), Memory(current), machine.look, lambda: machine.now)  # type: ignore[arg-type]


def test_a_peak_above_the_cap_squeezes() -> None:
    squeeze = governor(130 << 20, memory_bytes=100 << 20).squeeze()
    assert squeeze is not None
    assert squeeze.over_cap
    assert "30.0 MiB above the memory cap" in squeeze.reason
    assert governor(100, memory_bytes=100).squeeze() is None


def test_unknown_memory_and_no_cap_squeeze_nothing() -> None:
    assert governor(None, memory_bytes=100).squeeze() is None
    assert governor(10**12).squeeze() is None


@pytest.mark.parametrize(
    ("pressure", "words"),
    [
        (Pressure(available_bytes=30 << 20, total_bytes=8 * GIB), "of the machine's memory are left"),
        (Pressure(available_bytes=20 << 20, total_bytes=512 << 20), "of the machine's memory are left"),
        (Pressure(GIB, 8 * GIB, group_room_bytes=3 << 20, group_limit_bytes=GIB), "control group's memory are left"),
        (Pressure(GIB, 8 * GIB, device_room_bytes=9 << 20), "accelerator's memory are left"),
        (Pressure(GIB, 8 * GIB, stalled=0.35), "waited for memory in 35% of the last ten seconds"),
    ],
)
def test_others_who_take_memory_squeeze_too(pressure: Pressure, words: str) -> None:
    machine = Machine()
    machine.pressure = pressure
    squeeze = governor(machine=machine).squeeze()
    assert squeeze is not None
    assert not squeeze.over_cap
    assert words in squeeze.reason


@pytest.mark.parametrize(
    "pressure",
    [
        Pressure(),
        Pressure(available_bytes=200 << 20, total_bytes=8 * GIB),
        Pressure(available_bytes=40 << 20, total_bytes=512 << 20, stalled=0.0),
        Pressure(group_room_bytes=20 << 20, group_limit_bytes=GIB, stalled=0.1),
        Pressure(group_room_bytes=0),  # of a limit nobody knows
    ],
)
def test_little_is_not_too_little(pressure: Pressure) -> None:
    machine = Machine()
    machine.pressure = pressure
    assert governor(machine=machine).squeeze() is None


def test_the_machine_is_looked_at_once_a_second_and_given_time_to_settle() -> None:
    machine = Machine()
    machine.pressure = Pressure(available_bytes=0, total_bytes=GIB)
    watching = governor(machine=machine)
    assert watching.squeeze() is not None
    watching.tightened()
    found = []
    for _ in range(40):
        machine.now += 0.5
        if watching.squeeze() is not None:
            found.append(machine.now)
            watching.tightened()
    assert found == [10.0, 20.0]
    assert machine.looks == 21


def test_loosening_waits_for_room_and_longer_each_time_it_was_too_soon() -> None:
    machine = Machine()
    watching = governor(700, machine=machine, memory_bytes=1000)
    waits = []
    for _ in range(4):
        watching.tightened()
        began = machine.now
        while not watching.may_loosen(200):
            machine.now += 1.0
            assert watching.squeeze() is None
        waits.append(machine.now - began)
    assert waits == [30.0, 60.0, 120.0, 240.0]


def test_one_high_step_since_the_last_change_counts_as_much_as_the_last() -> None:
    machine = Machine()
    memory = Memory(900)
    watching = Governor(Caps(memory_bytes=1000), memory, machine.look, lambda: machine.now)  # type: ignore[arg-type]
    watching.tightened()
    watching.squeeze()  # one large image, or an evaluation
    memory.current = 500
    machine.now = 40.0
    watching.squeeze()
    assert not watching.may_loosen(200)
    watching.tightened()
    machine.now = 200.0
    watching.squeeze()
    assert watching.may_loosen(200)


def test_nothing_is_loosened_into_a_cap_or_a_full_machine() -> None:
    machine = Machine()
    watching = governor(900, machine=machine, memory_bytes=1000)
    watching.tightened()
    machine.now = 1e6
    watching.squeeze()
    assert not watching.may_loosen(100)  # and a fifth for what a prediction may be off
    assert watching.may_loosen(80)
    machine.now = 2e6
    machine.pressure = Pressure(available_bytes=200 << 20, total_bytes=8 * GIB)
    watching = governor(machine=machine)
    machine.now = 3e6
    watching.squeeze()
    assert not watching.may_loosen(100 << 20)
    machine.pressure = Pressure(group_room_bytes=10 << 20, group_limit_bytes=GIB)
    machine.now = 4e6
    watching.squeeze()
    assert not watching.may_loosen(9 << 20)
    assert watching.may_loosen(8 << 20)


def test_time_is_left_for_evaluating_and_saving() -> None:
    capped = governor(time_s=100.0)
    assert capped.spent_cap(Spent(89.0), 10.0) is None
    assert capped.spent_cap(Spent(91.0), 10.0) == "time"


def test_energy_is_left_for_evaluating_and_saving_at_the_mean_power() -> None:
    capped = governor(energy_j=100.0)
    assert capped.spent_cap(Spent(99.0, 50.0, 5.0), 9.0) is None  # 5 W for 9 s more: 95 J
    assert capped.spent_cap(Spent(99.0, 50.0, 5.0), 10.5) == "energy"


def test_energy_that_is_not_known_can_break_no_cap() -> None:
    assert governor(energy_j=1.0).spent_cap(Spent(1000.0), 10.0) is None
