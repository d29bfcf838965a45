"""Joules of a stretch of time, from a source of watts or from a counter of joules.

Watts are read on the monotonic clock and summed as trapezoids; a counter's readings are subtracted. Both give one
growing curve of joules, and a window is the difference between two points of it, so windows may nest and overlap at no
cost. A border that falls between two readings is interpolated; it is settled by the reading after it.

What a meter can't know it says: windows report their largest gap, the reads that failed and the share of time that
readings cover, and a window that is mostly holes has no joules. Accuracy on known traces: docs/energy.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from edgetune.device.power.base import EnergyCounter, PowerSource, Reading

BRIDGE_S = 5.0  # a longer silence is a hole: its joules are a guess, however good
LEAST_COVERAGE = 0.9  # of a window; below it there is no figure
FROZEN_AFTER_S = 60.0  # rail monitors resolve 8 mA, so a live one rarely repeats itself for a minute
_WATCHED_SHARE = 0.2  # of the total; a smaller rail may honestly stand still
_VANISHED_AFTER_S = 2.0
_IDLE_WINDOWS = 3  # of a sensor: a measurement must be more than its memory of what went before
_FORGET_S = 60.0
_OFF_ROUND = 0.963209  # makes 0.1 s 10.381966 readings a second: loads have round periods, and none beats with these


class _Point(NamedTuple):
    """A point of the curve: joules and uncovered seconds since the meter's first reading."""

    joules: float
    uncovered_s: float


class Window:
    """The energy between two moments; figures grow while it is open. Made by `EnergyMeter.window`."""

    def __init__(self, meter: EnergyMeter) -> None:
        self._meter = meter
        self._start_s: float | None = None
        self._end_s: float | None = None
        self._start: _Point | None = None
        self._end: _Point | None = None
        self._largest_gap_s = 0.0
        self._samples = [0, 0]  # the meter's count when the window opened, and when it closed
        self._dropped = [0, 0]
        self.frozen = False  # the sensor was seen repeating itself
        self._lost = False  # it ended long before the first reading came: nothing can be said of it

    def __enter__(self) -> Window:
        self._meter._open(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._meter._close(self)

    def _since_start(self, counts: list[int], now: int) -> int:
        """How far one of the meter's counts went within the window."""
        if self._start_s is None:
            return 0
        return (now if self._end_s is None else counts[1]) - counts[0]

    def _since(self, moment_s: float | None) -> float:
        """The later of a moment and the window's start."""
        start_s = self._start_s or 0.0
        return start_s if moment_s is None else max(moment_s, start_s)

    @property
    def seconds(self) -> float:
        """How long it is, so far; 0 before it is entered."""
        if self._start_s is None:
            return 0.0
        return (self._meter.clock() if self._end_s is None else self._end_s) - self._start_s

    @property
    def samples(self) -> int:
        """Readings that counted."""
        return self._since_start(self._samples, self._meter._samples)

    @property
    def dropped(self) -> int:
        """Reads that failed."""
        return self._since_start(self._dropped, self._meter._dropped)

    @property
    def largest_gap_s(self) -> float:
        """The longest time without a reading, the way to and from the borders included."""
        return self._meter._gap(self)

    @property
    def coverage(self) -> float:
        """The share of the window that lies between readings no more than `BRIDGE_S` apart; 0 without any reading."""
        difference = self._meter._difference(self)
        seconds = self.seconds
        if difference is None:
            return 0.0
        return min(1.0, max(0.0, 1.0 - difference.uncovered_s / seconds)) if seconds > 0 else 1.0

    @property
    def joules(self) -> float | None:
        """Gross joules, or None where readings cover too little of the window to say."""
        difference = self._meter._difference(self)
        return None if difference is None or self.coverage < LEAST_COVERAGE else difference.joules

    @property
    def estimated_joules(self) -> float | None:
        """Gross joules with holes filled at the neighbouring watts: what a cap should count when a sensor is lost."""
        difference = self._meter._difference(self)
        return None if difference is None else difference.joules

    @property
    def net_joules(self) -> float | None:
        """Joules above the idle power that `EnergyMeter.idle` measured; None before it did."""
        joules, idle_w = self.joules, self._meter.idle_w
        return None if joules is None or idle_w is None else joules - idle_w * self.seconds

    @property
    def watts(self) -> float | None:
        """Mean gross watts."""
        joules, seconds = self.joules, self.seconds
        return joules / seconds if joules is not None and seconds > 0 else None


def idle_seconds(window_s: float, least_s: float, longest_s: float) -> float | None:
    """How long to measure doing nothing, after one of the sensor's windows has gone by.

    Args:
        window_s: that a reading is the mean of; a sensor shows what was before until it is over.
        least_s: at least.
        longest_s: what there is time for.

    Returns:
        At least three windows, or None where there is no time for them.
    """
    seconds = max(least_s, _IDLE_WINDOWS * window_s)
    return seconds if seconds <= longest_s else None


class EnergyMeter:
    """Reads a source at a steady pace while it is entered.

    Args:
        source: what to read; None makes every joule None.
        interval_s: time between readings.
        clock: monotonic seconds.
        warn: told once each that the sensor vanished, froze or failed.
        thread: False leaves the pace to the caller, who calls `sample`.
        sleep: waits, for `idle`.
    """

    def __init__(
        self,
        source: PowerSource | None,
        interval_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
        *,
        warn: Callable[[str], None] | None = None,
        thread: bool = True,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.source = source
        self.interval_s = interval_s
        self.clock = clock
        self.idle_w: float | None = None
        self.warnings: list[str] = []
        self.sampling_cpu_s = 0.0  # processor time the sampling thread has used
        self._counter = source if isinstance(source, EnergyCounter) else None
        self._warn = warn
        self._sleep = sleep
        self._threaded = thread and source is not None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._reading = threading.Lock()  # one read of the source at a time; slow on a real bus
        self._state = threading.Lock()  # held for arithmetic only
        self._last_s: float | None = None  # of the last good reading
        self._last = _Point(0.0, 0.0)
        self._last_w: float | None = None
        self._samples = 0
        self._dropped = 0
        self._failing_since: float | None = None
        self._due_s = clock()
        self._retried = False
        self._same: dict[str, tuple[float, float]] = {}  # by rail: its watts, and since when
        self._open_windows: list[Window] = []
        self._pending: list[Window] = []  # windows with a border after the last good reading

    def __enter__(self) -> EnergyMeter:
        if self.source is not None:
            self.sample()
            if self._threaded:
                self._stop.clear()
                self._thread = threading.Thread(target=self._run, name="edgetune-energy", daemon=True)
                self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
        if self.source is not None:
            self.sample()
            close = getattr(self.source, "close", None)
            if close is not None:
                close()

    @property
    def watts(self) -> float | None:
        """The last reading, or for a counter the mean between its last two; None once it is old."""
        last_s = self._last_s
        return None if last_s is None or self.clock() - last_s > BRIDGE_S else self._last_w

    def window(self) -> Window:
        """A window to enter: `with meter.window() as w: …` and then `w.joules`."""
        return Window(self)

    def idle(self, seconds: float) -> float | None:
        """Measure the power of doing nothing for a while; later windows then know their net joules.

        Returns:
            Mean watts, or None where the source says nothing.
        """
        with self.window() as window:
            end_s = self.clock() + seconds
            while (rest_s := end_s - self.clock()) > 0:
                self._sleep(min(self.interval_s, rest_s))
                if not self._threaded and self.source is not None:
                    self.sample()
        self.idle_w = window.watts
        return self.idle_w

    def sample(self) -> bool:
        """Read the source once, now; False where it said nothing."""
        with self._reading:
            return self._sample()

    # ------------------------------------------------------------------------------------------------------- reading

    def next_s(self, now_s: float, good: bool) -> float:
        """When the next reading is due, after one that did or did not succeed.

        A failed read is tried again soon, once. Otherwise readings keep to an even grid a little finer than
        `interval_s`, because a load with a round period (a timer, a second hand) would be caught at the same few phases
        for ever by readings with one, and every edge would be misjudged alike.
        """
        if not good and not self._retried:
            self._retried = True
            return now_s + self.interval_s / 5
        self._retried = False
        self._due_s += self.interval_s * _OFF_ROUND
        if self._due_s <= now_s:  # a slow read, or the machine was busy: go on from here, never hurry after
            self._due_s = now_s + self.interval_s / 10
        return self._due_s

    def _run(self) -> None:
        """The sampling thread."""
        now_s = self._due_s = time.monotonic()
        due_s = now_s + self.interval_s
        while not self._stop.wait(max(0.0, due_s - now_s)):
            good = self.sample()
            now_s = time.monotonic()
            due_s = self.next_s(now_s, good)
            self.sampling_cpu_s = time.thread_time()

    def _sample(self) -> bool:
        before_s = self.clock()
        joules, reading = self._ask()
        now_s = (before_s + self.clock()) / 2  # a read on a real bus takes milliseconds
        with self._state:
            if self._last_s is not None and now_s <= self._last_s:
                return True  # a border's reading came first
            # a counter that stands still says nothing yet: its joules belong to the time until it moves
            stands = joules is not None and self._last_s is not None and joules <= self._last.joules
            good = reading is not None or (joules is not None and not stands)
            trouble = self._health(now_s, reading, good, stands)
            if good:
                self._append(now_s, reading.total_w if reading else None, joules)
            elif not stands:
                self._dropped += 1
        if trouble:
            self._tell(trouble)
        return good

    def _ask(self) -> tuple[float | None, Reading | None]:
        """Joules of a counter, or a reading with a total; a source that fails in any way has said nothing."""
        try:
            if self._counter is not None:
                return self._counter.read_j(), None
            reading = self.source.read() if self.source is not None else None
        except Exception as error:  # the sampling thread outlives a defect in one source
            self._tell(f"the power source {self._name} failed ({error}); energy has a hole.")
            return None, None
        return None, reading if reading is not None and reading.total_w is not None else None

    def _append(self, now_s: float, watts: float | None, joules: float | None) -> None:
        """Extend the curve to a good reading and settle the borders before it."""
        before_s, before, before_w = self._last_s, self._last, self._last_w
        if before_s is None:
            self._last = _Point(joules or 0.0, 0.0)
        else:
            gap_s = now_s - before_s
            if joules is not None:
                self._last = _Point(joules, before.uncovered_s)  # a counter has no holes
                watts = (joules - before.joules) / gap_s
            elif watts is not None:
                start_w = watts if before_w is None else before_w
                hole_s = gap_s if gap_s > BRIDGE_S else 0.0
                self._last = _Point(before.joules + (start_w + watts) / 2 * gap_s, before.uncovered_s + hole_s)
        for window in self._open_windows:
            window._largest_gap_s = max(window._largest_gap_s, now_s - window._since(before_s))
        pending, self._pending = self._pending, []
        self._samples += 1
        for window in pending:
            if window._start is None and window._start_s is not None:
                window._start = self._between(window._start_s, before_s, before, before_w, now_s, watts)
            if window._end is None and window._end_s is not None:
                window._end = self._between(window._end_s, before_s, before, before_w, now_s, watts)
        self._last_s, self._last_w = now_s, watts

    def _between(
        self,
        at_s: float,
        before_s: float | None,
        before: _Point,
        before_w: float | None,
        now_s: float,
        watts: float | None,
    ) -> _Point:
        """The curve at a moment between two good readings, or before the first."""
        if before_s is None:  # nothing is known of the time before the first reading but what followed
            ahead_s = now_s - at_s
            return _Point(self._last.joules - (watts or 0.0) * ahead_s, -ahead_s if ahead_s > BRIDGE_S else 0.0)
        elapsed_s, gap_s = at_s - before_s, now_s - before_s
        share = elapsed_s / gap_s
        uncovered_s = before.uncovered_s + share * (self._last.uncovered_s - before.uncovered_s)
        if self._counter is not None or before_w is None or watts is None:
            return _Point(before.joules + share * (self._last.joules - before.joules), uncovered_s)
        at_w = before_w + share * (watts - before_w)
        return _Point(before.joules + (before_w + at_w) / 2 * elapsed_s, uncovered_s)

    # ------------------------------------------------------------------------------------------------------- windows

    def _open(self, window: Window) -> None:
        self._border_sample()
        with self._state:
            window._start_s = self.clock()
            window._samples[0], window._dropped[0] = self._samples, self._dropped
            if self.source is not None:
                self._open_windows.append(window)
                self._pending.append(window)

    def _close(self, window: Window) -> None:
        self._border_sample()
        with self._state:
            window._end_s = self.clock()
            window._samples[1], window._dropped[1] = self._samples, self._dropped
            window._largest_gap_s = max(window._largest_gap_s, self._tail_gap(window))
            if self.source is not None:
                self._open_windows.remove(window)
                if window not in self._pending:
                    self._pending.append(window)
                if self._last_s is None:
                    self._forget_unread(window._end_s)
                elif window._end_s - self._last_s > _FORGET_S:  # it won't come back
                    self._settle_dead(window)

    def _forget_unread(self, now_s: float) -> None:
        """Give up windows that ended more than a bridge before any first reading can come."""
        for window in self._pending:
            window._lost = window._end_s is not None and now_s - window._end_s > BRIDGE_S
        self._pending = [window for window in self._pending if not window._lost]

    def _settle_dead(self, window: Window) -> None:
        """Close the books on a window of a sensor that has long been silent, so that such windows don't pile up."""
        window._start = window._start or self._ahead(window._start_s or 0.0)
        window._end = self._ahead(window._end_s or 0.0)
        self._pending.remove(window)

    def _border_sample(self) -> None:
        """Read at a border rather than interpolate it, unless that has just been done or the sensor is ill."""
        last_s = self._last_s
        if self.source is None or self._failing_since is not None:
            return
        if last_s is not None and self.clock() - last_s <= self.interval_s / 5:
            return
        if self._reading.acquire(blocking=False):  # else the sampling thread is at it
            try:
                self._sample()
            finally:
                self._reading.release()

    def _difference(self, window: Window) -> _Point | None:
        """What lies between a window's borders, or None before the first good reading."""
        with self._state:
            if (
                window._lost
                or window._start_s is None
                or self._last_s is None
                or (self._counter is not None and self._last_w is None)
            ):
                return None  # not entered, no reading yet, or a counter that has not moved yet
            end = window._end or self._ahead(self.clock() if window._end_s is None else window._end_s)
            start = window._start or self._ahead(window._start_s)
            return _Point(end.joules - start.joules, end.uncovered_s - start.uncovered_s)

    def _ahead(self, at_s: float) -> _Point:
        """The curve after the last good reading, held at its watts until the next one settles it."""
        ahead_s = max(0.0, at_s - (self._last_s or 0.0))
        hole_s = ahead_s if ahead_s > BRIDGE_S else 0.0
        return _Point(self._last.joules + (self._last_w or 0.0) * ahead_s, self._last.uncovered_s + hole_s)

    def _gap(self, window: Window) -> float:
        with self._state:
            going_on = window._start_s is not None and window._end_s is None
            return max(window._largest_gap_s, self._tail_gap(window) if going_on else 0.0)

    def _tail_gap(self, window: Window) -> float:
        end_s = self.clock() if window._end_s is None else window._end_s
        return end_s - window._since(self._last_s)

    # -------------------------------------------------------------------------------------------------------- health

    @property
    def _name(self) -> str:
        return self.source.name if self.source is not None else "none"

    def _health(self, now_s: float, reading: Reading | None, good: bool, stands: bool) -> str | None:
        """Notice a sensor that stopped answering or repeats itself; the sentence to warn with, if any."""
        if not good:
            self._failing_since = now_s if self._failing_since is None else self._failing_since
            if now_s - self._failing_since >= _VANISHED_AFTER_S:
                said = "stands still" if stands else "stopped answering"
                return f"the power source {self._name} {said}; energy after that is not measured."
            return None
        self._failing_since = None
        if reading is None or self.source is None or not self.source.measured:
            return None
        same, self._same = self._same, {}
        for name, watts in self._watched(reading).items():
            before = same.get(name)
            self._same[name] = before if before is not None and before[0] == watts else (watts, now_s)
        frozen = [name for name, (_, since_s) in self._same.items() if now_s - since_s >= FROZEN_AFTER_S]
        if not frozen:
            return None
        for window in self._open_windows:
            window.frozen = True
        rail = f" of {frozen[0]}" if frozen[0] else ""
        said = f"has repeated one reading{rail} for {FROZEN_AFTER_S:.0f} s; it may be frozen."
        return f"the power source {self._name} {said}"

    def _watched(self, reading: Reading) -> dict[str, float]:
        """The rails that make most of the total, each of which may freeze alone; the total where none is known."""
        total_w = reading.total_w or 0.0
        rule = getattr(self.source, "rule", None)
        rails = {name: reading.rails.get(name) for name in (rule.rails if rule is not None else reading.rails)}
        least_w = _WATCHED_SHARE * total_w
        large = {name: watts for name, watts in rails.items() if watts is not None and watts >= least_w}
        return large or {"": total_w}

    def _tell(self, sentence: str) -> None:
        """Pass on a warning once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)
            if self._warn is not None:
                self._warn(sentence)
