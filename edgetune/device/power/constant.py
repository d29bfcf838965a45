"""Watts that are not measured: a figure the user gives, and models that others fitted and published.

Source of the linear models: PowerJoular (`W = slope * CPU utilisation + idle`, measured at the supply of each board);
the coefficients are facts of the board catalogue, their names say whose they are. The models see the CPU only: no
clock change, no USB load.
"""

from __future__ import annotations

from edgetune.device.power.base import Facts, Reading
from edgetune.device.system import System


class UserConstant:
    """The watts a user gives with `--power`, for boards without a sensor."""

    name = "user"
    scope = "wall"
    measured = False

    def __init__(self, watts: float) -> None:
        self.watts = watts

    def read(self) -> Reading:
        """The same watts, always."""
        return Reading(self.watts)

    def facts(self) -> Facts:
        """That it is the user's word."""
        return Facts(model="constant given with --power", notes=("a constant given with --power, not measured",))


def parse_cpu_ticks(text: str) -> tuple[int, int] | None:
    """Busy and total scheduler ticks since boot from `/proc/stat`, or None where it has no cpu line."""
    for line in text.splitlines():
        fields = line.split()
        if fields[:1] != ["cpu"]:
            continue
        ticks = [int(field) for field in fields[1:9] if field.isascii() and field.isdigit() and len(field) < 20]
        if len(ticks) < 4:
            return None
        idle = sum(ticks[3:5])  # idle and iowait; guest time (fields 9, 10) is already inside user
        return sum(ticks) - idle, sum(ticks)
    return None


class LinearModel:
    """A published straight line from CPU utilisation to watts.

    Also an energy counter: a utilisation is a mean since the last look, so its joules are exact between any two looks.
    """

    scope = "estimate"
    measured = False

    def __init__(self, system: System, name: str, slope_w: float, idle_w: float) -> None:
        self.system = system
        self.name = "model"
        self.model = name
        self.slope_w = slope_w
        self.idle_w = idle_w
        self._ticks: tuple[int, int] | None = None
        self._utilisation: float | None = None
        self._joules = 0.0
        self._counted_at: float | None = None

    def read(self) -> Reading:
        """Watts at the utilisation since the last look; the first look takes the mean since boot."""
        utilisation = self._look()
        return Reading(None if utilisation is None else self.slope_w * utilisation + self.idle_w)

    def read_j(self) -> float | None:
        """Joules since the first call."""
        watts, now = self.read().total_w, self.system.clock()
        if watts is None:
            return None
        if self._counted_at is not None:
            self._joules += watts * max(0.0, now - self._counted_at)
        self._counted_at = now
        return self._joules

    def facts(self) -> Facts:
        """Whose model it is."""
        return Facts(
            model=self.model, notes=("no sensor: a published model of CPU utilisation, USB and clocks unseen",)
        )

    def _look(self) -> float | None:
        """CPU utilisation, 0 to 1; kept where no tick passed since the last look."""
        text = self.system.text("/proc/stat")
        ticks = parse_cpu_ticks(text) if text else None
        if ticks is None:
            return None
        busy, total = (ticks[0] - self._ticks[0], ticks[1] - self._ticks[1]) if self._ticks else ticks
        if total > 0 or self._utilisation is None:
            self._utilisation = min(1.0, max(0.0, busy / total)) if total > 0 else None
            self._ticks = ticks
        return self._utilisation
