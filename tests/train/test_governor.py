"""Caps: what is refused, and when."""

from __future__ import annotations

from edgetune.schema import Caps
from edgetune.train.governor import Governor


class Memory:
    def __init__(self, current: int | None) -> None:
        self.current = current

    def take_recent_peak_bytes(self) -> int | None:
        return self.current


def governor(current: int | None = None, **caps: float) -> Governor:
    return Governor(Caps(**caps), Memory(current))  # type: ignore[arg-type]


def test_memory_excess_is_what_stands_above_the_cap() -> None:
    assert governor(130, memory_bytes=100).excess_bytes() == 30
    assert governor(100, memory_bytes=100).excess_bytes() == 0


def test_unknown_memory_and_no_cap_are_no_excess() -> None:
    assert governor(None, memory_bytes=100).excess_bytes() == 0
    assert governor(10**12).excess_bytes() == 0


def test_time_is_left_for_evaluating_and_saving() -> None:
    capped = governor(time_s=100.0)
    assert capped.spent_cap(89.0, None, 10.0) is None
    assert capped.spent_cap(91.0, None, 10.0) == "time"


def test_energy_is_left_for_evaluating_and_saving_at_the_mean_power() -> None:
    capped = governor(energy_j=100.0)
    assert capped.spent_cap(10.0, 50.0, 9.0) is None  # 5 W for 9 s more: 95 J
    assert capped.spent_cap(10.0, 50.0, 10.5) == "energy"


def test_energy_that_is_not_known_can_break_no_cap() -> None:
    assert governor(energy_j=1.0).spent_cap(1000.0, None, 10.0) is None
