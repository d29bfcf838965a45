"""Keeps a run inside its caps: memory after every step, time and energy before every step."""

from __future__ import annotations

import math

from edgetune.measure.memory import PeakMeter
from edgetune.schema import Caps, StoppedBy


class Governor:
    """Compares what was spent with what may be spent. It decides; the loop acts and logs."""

    def __init__(self, caps: Caps, memory: PeakMeter) -> None:
        self.caps = caps
        self._memory = memory

    def excess_bytes(self) -> int:
        """How far the peak since the last call stands above the cap; 0 inside it, or where it can't be read."""
        if self.caps.memory_bytes is None:
            return 0
        return max(0, (self._memory.take_recent_peak_bytes() or 0) - self.caps.memory_bytes)

    @property
    def budgeted(self) -> bool:
        """Whether time or energy is capped."""
        return self.caps.time_s is not None or self.caps.energy_j is not None

    def steps_left(self, seconds: float, joules: float | None, reserve_s: float, step_s: float) -> float:
        """How many steps the caps on time and energy still have room for; infinite where neither is capped.

        Args:
            seconds: wall time spent so far.
            joules: energy spent so far; None where it can't be known.
            reserve_s: time that must be left for evaluating and saving.
            step_s: what a step takes, with its share of the evaluations to come.
        """
        left_s = math.inf if self.caps.time_s is None else self.caps.time_s - seconds
        if self.caps.energy_j is not None and joules:
            left_s = min(left_s, (self.caps.energy_j - joules) * seconds / joules)
        return max(0.0, left_s - reserve_s) / step_s if step_s > 0 else math.inf

    def spent_cap(self, seconds: float, joules: float | None, reserve_s: float) -> StoppedBy | None:
        """The cap that another step would break, if any.

        Args:
            seconds: wall time spent so far.
            joules: energy spent so far; None where it can't be known.
            reserve_s: time that must be left for this step, an evaluation and a save; its energy is reckoned at the
                mean power so far.
        """
        if self.caps.time_s is not None and seconds + reserve_s >= self.caps.time_s:
            return "time"
        if self.caps.energy_j is not None and joules is not None:
            mean_w = joules / seconds if seconds > 0 else 0.0
            if joules + reserve_s * mean_w >= self.caps.energy_j:
                return "energy"
        return None
