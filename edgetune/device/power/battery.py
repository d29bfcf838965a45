"""Batteries of laptops and UPS boards that the kernel knows (`/sys/class/power_supply`).

What a discharging battery delivers is what the whole machine draws; while it charges or rests, the machine's draw is
unknown. The direction comes from `status`: the kernel's documentation says a negative current discharges, and many
drivers do not keep to it. USB, mains and UCSI entries hold *negotiated* values, not measurements, and are passed over.
"""

from __future__ import annotations

from edgetune.device.power.base import Facts, Judge, Reading, sum_known
from edgetune.device.reading import read_number
from edgetune.device.system import System

CHARGE_SHARE = 0.95  # of a battery's charge: machines go dark before the last joule
_FOLDERS = "/sys/class/power_supply/*"


class Batteries:
    """The batteries that feed this machine."""

    name = "battery"
    scope = "battery"
    measured = True

    def __init__(self, system: System, folders: list[str]) -> None:
        self.system = system
        self.folders = folders
        self._judge = Judge(system)

    def read(self) -> Reading:
        """Watts out of each battery; unknown in total unless one discharges and none charges."""
        status = {folder: (self.system.text(f"{folder}/status") or "").lower() for folder in self.folders}
        rails = {
            folder.rsplit("/", 1)[1]: self._watts(folder) if status[folder] == "discharging" else None
            for folder in self.folders
        }
        if "charging" in status.values() or "discharging" not in status.values():
            return Reading(None, rails)
        draining = [rails[folder.rsplit("/", 1)[1]] for folder in self.folders if status[folder] == "discharging"]
        return Reading(sum_known(draining), rails)

    def facts(self) -> Facts:
        """When it knows."""
        return Facts(notes=("what the battery delivers: known only while it discharges",))

    def charge_j(self) -> float | None:
        """Energy left, where a battery feeds the machine now; None while it charges or rests, or where it is unknown.

        `energy_now` is in microwatt-hours, `charge_now` in microampere-hours (kernel
        Documentation/ABI/testing/sysfs-class-power).
        """
        if self.read().total_w is None:
            return None
        charges = []
        for folder in self.folders:
            microwatt_hours = read_number(self.system, f"{folder}/energy_now")
            if microwatt_hours is not None and microwatt_hours >= 0:
                charges.append(microwatt_hours * 3600 / 1e6)
                continue
            microampere_hours = read_number(self.system, f"{folder}/charge_now")
            microvolts = read_number(self.system, f"{folder}/voltage_now")
            if microampere_hours is None or microvolts is None or min(microampere_hours, microvolts) < 0:
                return None
            charges.append(microampere_hours * microvolts * 3600 / 1e12)
        return sum(charges)

    def _watts(self, folder: str) -> float | None:
        path = f"{folder}/power_now"
        if self.system.exists(path):
            microwatts = read_number(self.system, path)
            return None if microwatts is None else self._judge.believable_total(path, abs(microwatts) / 1e6)
        microvolts = read_number(self.system, f"{folder}/voltage_now")
        microamperes = read_number(self.system, f"{folder}/current_now")
        if microvolts is None or microamperes is None:
            return None
        return self._judge.believable_total(f"{folder}/current_now", microvolts * abs(microamperes) / 1e12)


def spendable_j(system: System) -> float | None:
    """What a run may take of the charge of the batteries that feed this machine now; None where none does."""
    batteries = find_batteries(system)
    charge_j = None if batteries is None else batteries.charge_j()
    return None if charge_j is None else CHARGE_SHARE * charge_j


def find_batteries(system: System) -> Batteries | None:
    """The batteries present, or None."""
    folders = []
    for folder in system.glob(_FOLDERS):
        kind = (system.text(f"{folder}/type") or "").lower()
        own = (system.text(f"{folder}/scope") or "").lower() != "device"  # a mouse has a battery too
        if kind in {"battery", "ups"} and own and system.integer(f"{folder}/present") != 0:
            folders.append(folder)
    return Batteries(system, folders) if folders else None
