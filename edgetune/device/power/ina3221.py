"""Rail monitors on i2c: TI's INA3221 on every Jetson, in both driver styles, and single-channel INA2xx/INA238 chips.

* JetPack 4, driver `ina3221x` (IIO): `rail_name_N`, `in_voltageN_input` mV, `in_currentN_input` mA, `in_powerN_input`
  **mW**, channels from 0.
* JetPack 5 and later, mainline `ina3221` (hwmon): `inN_label`, `inN_input` mV, `currN_input` mA, channels 1 to 3, no
  power file (a clone's `powerN_input` is in mW against every hwmon rule: volts times amperes is preferred). Channels 4
  to 6 are shunt voltages and 7 is their sum: not rails. Reads of a disabled channel fail with ENODATA.
* INA219, 226, 238 and kin (hwmon): one channel, `power1_input` **microwatt**, named by the chip's `label`. Its power
  stays positive while its current is negative (Network UPS Tools #2960), so the sign comes from the current.

Chips and channels are found by what they say, never by number: hwmon and IIO numbers change with every release.
Kernel: drivers/hwmon/ina3221.c, ina2xx.c, ina238.c; L4T's ina3221x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgetune.device.catalogue import BoardEntry
from edgetune.device.power.base import Facts, Judge, Reading, total_facts, total_w
from edgetune.device.reading import read_number
from edgetune.device.system import System

SINGLE_CHANNEL = ("ina209", "ina219", "ina220", "ina226", "ina228", "ina230", "ina231", "ina233", "ina234", "ina236",
                  "ina237", "ina238", "ina260", "ina700", "ina780")  # fmt: skip
_NOT_RAILS = ("", "nc", "sum of shunt voltages")
_MAINLINE = ("/sys/class/hwmon/hwmon*", "/sys/bus/i2c/drivers/*/*/hwmon/hwmon*", "/sys/bus/i2c/devices/*/hwmon/hwmon*")
_JETPACK_4 = ("/sys/bus/i2c/drivers/ina3221x/*/iio?device*", "/sys/bus/iio/devices/iio:device*")


@dataclass(frozen=True)
class Rail:
    """One metered wire. `chip` is the folder it was found in; `labelled` says whether the device tree names it."""

    name: str
    chip: str
    read_w: Callable[[], float | None]
    kind: str = "ina3221"
    labelled: bool = True
    path: str = ""  # the file that warnings name


def find_rails(system: System) -> list[Rail]:
    """Every rail of every monitor below `system`, labelled ones by their label; nothing is read yet but names."""
    judge = Judge(system)
    rails: list[Rail] = []
    for folder, chip in _chips(system):
        rails += _ina3221_rails(judge, folder) if chip == "ina3221" else [_single_rail(judge, folder, chip)]
    if not any(rail.labelled for rail in rails):
        rails += [rail for folder in _unique(system, _JETPACK_4) for rail in _jetpack4_rails(judge, folder)]
    return rails


class RailMonitors:
    """A board's rails, with the catalogue's rule that says which of them are its total."""

    measured = True

    def __init__(self, system: System, rails: list[Rail], entry: BoardEntry | None) -> None:
        self.system = system
        self._judge = Judge(system)
        self.rails: dict[str, Rail] = {}
        doubtful = set()
        for rail in rails:
            if rail.name in self.rails:
                doubtful.add(rail.name)
                system.warn(f"{rail.chip} names a second rail {rail.name}: neither is taken for the total.")
            self.rails.setdefault(rail.name, rail)
        labelled = {rail.name for rail in self.rails.values() if rail.labelled} - doubtful
        self.rule = entry.total_rule(labelled) if entry else None
        counted = self.rule.rails if self.rule else self.rails
        self.name = "+".join(sorted({self.rails[name].kind for name in counted}))
        self.scope = self.rule.scope if self.rule else "unknown"

    def read(self) -> Reading:
        """All rails now; the total only where every rail it needs could be read."""
        watts = {name: rail.read_w() for name, rail in self.rails.items()}
        total = total_w(self.rule, watts)
        if total == 0.0 and self.rule is not None:
            total = self._judge.believable_total(self.rails[self.rule.rails[0]].path, total)
        return Reading(total, watts)

    def facts(self) -> Facts:
        """The averaging window of the slowest chip in the total, and what is listed only."""
        counted = self.rule.rails if self.rule else list(self.rails)
        chips = sorted({self.rails[name].chip for name in counted})
        windows = [window for chip in chips if (window := averaging_window_s(self.system, chip)) is not None]
        return Facts(interval_s=max(windows, default=None), notes=total_facts(self.rule, self.rails))


class SupplyMeter:
    """One chip that the user says measures the supply."""

    measured = True
    scope = "wall"

    def __init__(self, system: System, rail: Rail) -> None:
        self.system = system
        self._judge = Judge(system)
        self.rail = rail
        self.name = rail.name

    def read(self) -> Reading:
        """Its watts now."""
        watts = self.rail.read_w()
        return Reading(self._judge.believable_total(self.rail.path, watts), {self.rail.name: watts})

    def facts(self) -> Facts:
        """Whose word it is that this is the supply."""
        return Facts(
            interval_s=averaging_window_s(self.system, self.rail.chip), notes=("measures the supply, as the user says",)
        )


def averaging_window_s(system: System, chip: str) -> float | None:
    """The time a chip averages over: `update_interval` (ms) already includes channels, samples and conversion times."""
    milliseconds = system.integer(f"{chip}/update_interval")
    return milliseconds / 1000 if milliseconds is not None and 0 < milliseconds < 100_000 else None


def _chips(system: System) -> list[tuple[str, str]]:
    """Folder and chip name of every power monitor hwmon lists; a chip seen through two paths counts once."""
    found = []
    for folder in _unique(system, _MAINLINE):
        chip = (system.text(f"{folder}/name") or "").lower()
        if chip == "ina3221" or chip in SINGLE_CHANNEL:
            found.append((folder, chip))
    return found


def _unique(system: System, patterns: tuple[str, ...]) -> list[str]:
    """Folders matching any pattern, each device once, by the first path that leads to it.

    Two paths may be links to one folder, or folders that name the same rails (a tree copied without its links).
    """
    folders: list[str] = []
    seen: set[object] = set()
    for pattern in patterns:
        here: set[object] = set()
        for folder in system.glob(pattern):
            path = system.path(folder)
            try:
                real = path.resolve()
            except (OSError, RuntimeError):
                continue
            labels = tuple(
                text
                for stem in (
                    "name",
                    "label",
                    *(f"in{n}_label" for n in (1, 2, 3)),
                    *(f"rail_name_{n}" for n in (0, 1, 2)),
                )
                if (text := system.text(f"{folder}/{stem}")) is not None
            )
            if real in seen or (labels and labels in seen):
                continue
            here |= {real, labels}
            folders.append(folder)
        seen |= here
    return folders


def _ina3221_rails(judge: Judge, folder: str) -> list[Rail]:
    """The labelled, enabled channels of a mainline INA3221."""
    rails = []
    for channel in (1, 2, 3):
        label = judge.system.text(f"{folder}/in{channel}_label")
        named = label is not None and label.isprintable()
        if label is not None and label.lower() in _NOT_RAILS:
            continue
        if label is None and not judge.system.exists(f"{folder}/in{channel}_input"):
            continue
        if judge.system.integer(f"{folder}/in{channel}_enable") == 0:
            continue
        name = label if label is not None and named else f"{_bus_address(judge.system, folder)}.ch{channel}"
        volts, amperes = f"{folder}/in{channel}_input", f"{folder}/curr{channel}_input"
        rails.append(Rail(name, folder, _volts_times_amperes(judge, volts, amperes), labelled=named, path=amperes))
    return rails


def _jetpack4_rails(judge: Judge, folder: str) -> list[Rail]:
    """The named channels of JetPack 4's own driver."""
    rails = []
    for channel in (0, 1, 2):
        label = judge.system.text(f"{folder}/rail_name_{channel}")
        if label is None or label.lower() in _NOT_RAILS or not label.isprintable():
            continue
        power = f"{folder}/in_power{channel}_input"
        volts, amperes = f"{folder}/in_voltage{channel}_input", f"{folder}/in_current{channel}_input"
        otherwise = _volts_times_amperes(judge, volts, amperes)
        rails.append(Rail(label, folder, _milliwatts(judge, power, otherwise), path=power))
    return rails


def _single_rail(judge: Judge, folder: str, chip: str) -> Rail:
    """The one channel of an INA2xx or INA238; without a label only the user knows what it meters."""
    label = judge.system.text(f"{folder}/label")
    labelled = bool(label) and label is not None and label.isprintable() and label.lower() not in _NOT_RAILS
    power, current = f"{folder}/power1_input", f"{folder}/curr1_input"

    def read_w() -> float | None:
        microwatts = read_number(judge.system, power)
        if microwatts is None:
            return _volts_times_amperes(judge, f"{folder}/in1_input", current)()
        milliamperes = read_number(judge.system, current)
        sign = -1 if milliamperes is not None and milliamperes < 0 else 1
        return judge.believable(power, sign * abs(microwatts) / 1e6)

    return Rail(label if labelled and label else chip, folder, read_w, chip, labelled, power)


def _volts_times_amperes(judge: Judge, volts: str, amperes: str) -> Callable[[], float | None]:
    """Watts of a pair of files in millivolts and milliamperes."""

    def read_w() -> float | None:
        millivolts = read_number(judge.system, volts)
        milliamperes = read_number(judge.system, amperes) if millivolts is not None else None
        if millivolts is None or milliamperes is None:
            return None
        return judge.believable(amperes, millivolts * milliamperes / 1e6)

    return read_w


def _milliwatts(judge: Judge, power: str, otherwise: Callable[[], float | None]) -> Callable[[], float | None]:
    """Watts of a file in milliwatts, or what volts and amperes say where it can't be read."""

    def read_w() -> float | None:
        milliwatts = read_number(judge.system, power)
        return otherwise() if milliwatts is None else judge.believable(power, milliwatts / 1e3)

    return read_w


def _bus_address(system: System, folder: str) -> str:
    """`1-0040`, the chip's place on its bus, from the path or the link behind it."""
    try:
        parts = system.path(f"{folder}/device").resolve().name, *reversed(system.path(folder).resolve().parts)
    except (OSError, RuntimeError):
        parts = (folder,)
    return next((part for part in parts if len(part) >= 6 and part[-5] == "-" and part[:-5].isdigit()), "ina3221")
