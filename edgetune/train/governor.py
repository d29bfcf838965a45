"""Keeps a run inside its caps and out of the way of others: it decides, the loop acts and logs.

Memory of the process tree is held against the cap after every step and every group of images that is prepared; once a
second the machine's own memory, the control group's and the kernel's stall information are looked at, since another
process may take what was there. Tightening is immediate; loosening waits until there has been room for a while, and
longer each time it turned out to be too soon. Time and energy are checked before every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from edgetune.device.pressure import Pressure
from edgetune.measure.memory import PeakMeter
from edgetune.schema import Caps, StoppedBy
from edgetune.units import format_size

_EVERY_S = 1.0  # between looks at the machine
_SCARCE_SHARE, _SCARCE_BYTES = 0.015, 24 << 20  # of the machine's memory: less than both left is too little
_GROUP_SHARE, _GROUP_BYTES = 0.01, 4 << 20  # of a control group's limit; at the limit the kernel kills
_STALLED = 0.2  # of the last ten seconds
_SETTLE_S = 10.0  # after tightening, before the same pressure tightens again
_PATIENCE_S, _MOST_PATIENCE_S = 30.0, 1800.0
_HEADROOM = 1.2  # what must be free to loosen, as a multiple of what that takes


class Spent(NamedTuple):
    """What a run has used up."""

    seconds: float
    joules: float | None = None  # None: they can't be known
    watts: float | None = None  # mean power, as far as it was read


class Squeeze(NamedTuple):
    """Why a run should need less memory."""

    reason: str
    over_cap: bool  # of the run itself; otherwise others need what it has


class Governor:
    """Compares what was spent with what may be spent.

    Args:
        caps: of the run.
        memory: measures the process tree.
        pressure: reads how much memory others leave; None: nobody looks.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        caps: Caps,
        memory: PeakMeter,
        pressure: Callable[[], Pressure] | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.caps = caps
        self._memory, self._pressure, self._clock = memory, pressure, clock
        self._looked_at = -math.inf
        self._seen = Pressure()
        self._peak_bytes = 0  # since the last change
        self._changed_at, self._tightened_at = clock(), -math.inf
        self._patience_s = _PATIENCE_S
        self._loosened = False

    # -- memory -------------------------------------------------------------------------------------------------------

    def squeeze(self) -> Squeeze | None:
        """Why the run should need less from now on; None while all is well. Call it after every step."""
        cap = self.caps.memory_bytes
        if cap is not None:
            recent = self._memory.take_recent_peak_bytes() or 0
            self._peak_bytes = max(self._peak_bytes, recent)
            if recent > cap:
                return Squeeze(f"{format_size(recent - cap)} above the memory cap", over_cap=True)
        now = self._clock()
        if self._pressure is None or now - self._looked_at < _EVERY_S:
            return None
        self._looked_at = now
        seen = self._seen = self._pressure()
        reason = _scarce(seen)
        # what was given back shows in the ten-second means only after a while
        return Squeeze(reason, over_cap=False) if reason and now - self._tightened_at >= _SETTLE_S else None

    def tightened(self) -> None:
        """The run was made to need less. If that undid a loosening, the next one will wait twice as long."""
        if self._loosened:
            self._patience_s = min(_MOST_PATIENCE_S, 2 * self._patience_s)
        self._changed_at = self._tightened_at = self._clock()
        self._peak_bytes, self._loosened = 0, False

    def may_loosen(self, growth_bytes: int) -> bool:
        """Whether there has long enough been room for a run that needs so much more; then the next wait begins."""
        if self._clock() - self._changed_at < self._patience_s:
            return False
        needed, cap, seen = _HEADROOM * growth_bytes, self.caps.memory_bytes, self._seen
        rooms = [
            None if cap is None else cap - self._peak_bytes,
            None if seen.available_bytes is None else seen.available_bytes - _least(seen),
            seen.group_room_bytes,
            seen.device_room_bytes,
        ]
        if any(room is not None and room < needed for room in rooms):
            return False
        self._changed_at, self._peak_bytes, self._loosened = self._clock(), 0, True
        return True

    # -- time and energy ----------------------------------------------------------------------------------------------

    @property
    def budgeted(self) -> bool:
        """Whether time or energy is capped."""
        return self.caps.time_s is not None or self.caps.energy_j is not None

    def seconds_left(self, spent: Spent, reserve_s: float) -> float:
        """For how long the caps on time and energy still let a run train; infinite where neither is capped.

        Args:
            spent: so far; joules are reckoned at its mean power.
            reserve_s: time that must be left for evaluating and saving.
        """
        left_s = math.inf if self.caps.time_s is None else self.caps.time_s - spent.seconds
        if self.caps.energy_j is not None and spent.joules is not None and spent.watts:
            left_s = min(left_s, (self.caps.energy_j - spent.joules) / spent.watts)
        return max(0.0, left_s - reserve_s)

    def spent_cap(self, spent: Spent, reserve_s: float) -> StoppedBy | None:
        """The cap that another step would break, if any.

        Args:
            spent: so far.
            reserve_s: time that must be left for this step, an evaluation and a save; its energy is reckoned at the
                mean power so far.
        """
        if self.caps.time_s is not None and spent.seconds + reserve_s >= self.caps.time_s:
            return "time"
        if self.caps.energy_j is None or spent.joules is None:
            return None
        return "energy" if spent.joules + reserve_s * (spent.watts or 0.0) >= self.caps.energy_j else None


def _least(seen: Pressure) -> int:
    """Memory that the machine should keep free."""
    return max(_SCARCE_BYTES, int(_SCARCE_SHARE * (seen.total_bytes or 0)))


def _scarce(seen: Pressure) -> str | None:
    if seen.available_bytes is not None and seen.available_bytes < _least(seen):
        return f"only {format_size(seen.available_bytes)} of the machine's memory are left"
    room, limit = seen.group_room_bytes, seen.group_limit_bytes
    if room is not None and limit is not None and room < max(_GROUP_BYTES, int(_GROUP_SHARE * limit)):
        return f"only {format_size(room)} of the control group's memory are left"
    if seen.device_room_bytes is not None and seen.device_room_bytes < _SCARCE_BYTES:
        return f"only {format_size(seen.device_room_bytes)} of the accelerator's memory are left"
    if seen.stalled is not None and seen.stalled > _STALLED:
        return f"tasks waited for memory in {seen.stalled:.0%} of the last ten seconds"
    return None
