"""x86 processors' energy counters (RAPL: Intel since 2011, AMD Zen under the same names since Linux 5.8).

`/sys/class/powercap/intel-rapl:N/energy_uj` counts microjoules and wraps at `max_energy_range_uj`. The total is the
sum of the packages, plus memory where it is metered apart. `core` and `uncore` lie inside their package, `psys` (the
platform) around it, and `intel-rapl-mmio` shows the same package again: none of them is added. Since CVE-2020-8694 the
counters belong to root.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from edgetune.device.power.base import MOST_W, Facts, Judge, Reading, sum_known
from edgetune.device.reading import read_number
from edgetune.device.system import System

_ZONES = ("/sys/class/powercap/intel-rapl:*", "/sys/class/powercap/intel-rapl:*/intel-rapl:*")
PERMISSION_HINT = (
    "/sys/class/powercap/intel-rapl:*/energy_uj needs permission: run `sudo chmod a+r "
    "/sys/class/powercap/intel-rapl:*/energy_uj` (until the next boot) to have energy measured."
)


@dataclass
class Zone:
    """One counter, unwrapped: `joules` never falls."""

    name: str
    path: str
    range_uj: int | None
    joules: float = 0.0
    last_uj: int | None = None
    last_s: float | None = None

    def advance(self, count_uj: int, now_s: float) -> bool:
        """Take in a count; False where it can't be the old one gone on, which restarts the zone at the new count."""
        last_uj, last_s = self.last_uj, self.last_s
        self.last_uj, self.last_s = count_uj, now_s
        if last_uj is None or last_s is None:
            return True
        delta_uj = count_uj - last_uj
        if delta_uj < 0:
            if self.range_uj is None:
                return False
            delta_uj += self.range_uj + 1
        # a counter that was reset looks like a wrap worth megawatts; two readings may be as close as a millisecond
        if delta_uj < 0 or delta_uj / 1e6 > MOST_W * max(now_s - last_s, 0.01):
            return False
        self.joules += delta_uj / 1e6
        return True


class Rapl:
    """Processor packages and their memory, as a counter of joules."""

    name = "rapl"
    scope = "cpu-package"
    measured = True

    def __init__(self, system: System, zones: list[Zone]) -> None:
        self.system = system
        self.zones = zones
        self._judge = Judge(system)
        self._before: tuple[float, dict[str, float]] | None = None

    def read_j(self) -> float | None:
        """Joules since the first call."""
        now = self.system.clock()
        good = True
        for zone in self.zones:
            count = read_number(self.system, zone.path)
            if count is None:
                good = False
            elif count < 0 or not zone.advance(count, now):
                self._judge.warn_once(zone.path, f"{zone.path} jumped: the joules of that moment are not counted.")
                good = False
        return sum(zone.joules for zone in self.zones) if good else None

    def read(self) -> Reading:
        """Mean watts since the last look; unknown at the first, and while no counter moves."""
        before, joules, now = self._before, self.read_j(), self.system.clock()
        counts = {zone.name: zone.joules for zone in self.zones}
        self._before = (now, counts) if joules is not None else None
        if joules is None or before is None or now <= before[0]:
            return Reading(None, dict.fromkeys(counts))
        moved = {name: count - before[1][name] for name, count in counts.items()}
        rails = {
            name: self._judge.believable(name, joules_moved / (now - before[0])) if joules_moved > 0 else None
            for name, joules_moved in moved.items()
        }
        # a processor without a memory meter may still list one that stands still; a package never does
        counted = [watts for name, watts in rails.items() if watts is not None or name.startswith("package")]
        return Reading(sum_known(counted), rails)

    def facts(self) -> Facts:
        """That the rest of the machine is not in it."""
        return Facts(
            interval_s=0.001,
            notes=(f"total = {' + '.join(zone.name for zone in self.zones)}: the rest of the machine is not in it",),
        )


def find_rapl(system: System) -> Rapl | None:
    """The packages' counters, or None; a machine that has them but keeps them for root gets a warning that says how."""
    names: dict[str, tuple[str, str]] = {}  # by kernel name, since the class lists nested zones a second time
    for pattern in _ZONES:
        for folder in system.glob(pattern):
            name = system.text(f"{folder}/name") or ""
            key = folder.rsplit("/", 1)[1]
            if (name.startswith("package") or name == "dram") and key not in names:
                names[key] = (name, folder)
    zones: list[Zone] = []
    for key in sorted(names, key=lambda key: [int(part) for part in key.split(":")[1:] if part.isdigit()]):
        name, folder = names[key]
        path = f"{folder}/energy_uj"
        try:
            system.read_bytes(path)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EPERM}:
                system.warn(PERMISSION_HINT)
                return None
            continue
        package = key.split(":")[1]
        if any(zone.name == name for zone in zones) or (name == "dram" and len(names) > 2):
            name = f"{name}-{package}"
        range_uj = system.integer(f"{folder}/max_energy_range_uj")
        zones.append(Zone(name, path, range_uj if range_uj and range_uj > 0 else None))
    return Rapl(system, zones) if any(zone.name.startswith("package") for zone in zones) else None
