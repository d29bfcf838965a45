"""What watches a run, and how its seconds and joules are counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec

from edgetune.device.energy import EnergyMeter, Window
from edgetune.device.pressure import Pressure
from edgetune.measure.memory import PeakMeter


class Meters(msgspec.Struct):
    """What watches the run."""

    memory: PeakMeter
    energy: EnergyMeter
    sitting: Window  # of the meter, open since this sitting began
    started: float  # when the process started, on the clock
    clock: Callable[[], float] = time.monotonic
    pressure: Callable[[], Pressure] | None = None
    throttle: Callable[[], Mapping[str, int | None]] = dict


def total(before: float | None, now: float | None) -> float | None:
    """A sum that is unknown where one of its parts is."""
    return None if before is None or now is None else before + now


def difference(now: float | None, before: float | None) -> float | None:
    """What was added to a sum that may be unknown."""
    return None if now is None or before is None else now - before


class Timed:
    """Add the wall time of a block to one of a record's counters.

    Args:
        clock: seconds.
        record: what has the counter.
        field: its name.
    """

    def __init__(self, clock: Callable[[], float], record: object, field: str) -> None:
        self._clock, self._record, self._field = clock, record, field

    def __enter__(self) -> None:
        self._start = self._clock()

    def __exit__(self, *exception: object) -> None:
        seconds = self._clock() - self._start
        setattr(self._record, self._field, getattr(self._record, self._field) + seconds)
