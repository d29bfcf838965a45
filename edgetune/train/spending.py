"""Seconds and joules of a run over all its sittings, as they are reported and as caps count them."""

from __future__ import annotations

import msgspec

from edgetune.train.governor import Spent
from edgetune.train.meters import Meters, total
from edgetune.train.progress import Progress

_UNKNOWN = ("unknown", "unknown", False)


class Spending:
    """Of one run.

    Args:
        meters: of this sitting.
        progress: has what earlier sittings spent.
    """

    def __init__(self, meters: Meters, progress: Progress) -> None:
        self._meters, self._progress = meters, progress

    def seconds(self) -> float:
        """Wall time."""
        return self._progress.spent_s + self._meters.clock() - self._meters.started

    def joules(self) -> tuple[float | None, float | None]:
        """Gross and net energy; None where it can't be known."""
        return (
            total(self._progress.spent_j, self._meters.sitting.joules),
            total(self._progress.spent_net_j, self._meters.sitting.net_joules),
        )

    def sources(self) -> list[tuple[str, str, bool]]:
        """What said how much it was: name, scope, and whether it measures; of all sittings."""
        source, earlier = self._meters.energy.source, self._progress.energy_sources
        if not earlier and self._progress.spent_j:  # by a version that noted none
            earlier = [_UNKNOWN]
        now = [] if source is None else [(source.name, source.scope, source.measured)]
        return list(dict.fromkeys([*earlier, *now]))

    def estimated_joules(self) -> float | None:
        """What a cap counts: holes in the readings filled, the process's start before the first one included."""
        sitting, watts = self._meters.sitting, self._mean_w()
        before_s = max(0.0, self._meters.clock() - self._meters.started - sitting.seconds)
        joules = total(self._progress.spent_estimated_j, sitting.estimated_joules)
        return None if joules is None else joules + before_s * (watts or 0.0)

    def so_far(self) -> Spent:
        """What caps are held against."""
        return Spent(self.seconds(), self.estimated_joules(), self._mean_w())

    def noted(self) -> Progress:
        """The run's progress with this sitting's part added, for a later one."""
        joules, net = self.joules()
        return msgspec.structs.replace(
            self._progress,
            spent_s=self.seconds(),
            spent_j=joules,
            spent_net_j=net,
            spent_estimated_j=self.estimated_joules() or 0.0,
            energy_sources=self.sources(),
        )

    def _mean_w(self) -> float | None:
        """Mean power of this sitting, over the time that it was read."""
        sitting = self._meters.sitting
        joules, seconds = sitting.estimated_joules, sitting.seconds
        return self._meters.energy.watts if joules is None or seconds <= 0 else joules / seconds
