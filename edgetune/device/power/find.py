"""Which source speaks for this board, and what the profile says of it.

What the user says comes first, then sensors from the widest and surest view to the narrowest, then what is modelled:
rail monitors with a rule for the total, the Raspberry Pi's power chip, processor counters (and graphics cards beside
them), a battery that is discharging, published models. tegrastats speaks for a Jetson whose rail monitors can't be
read. A sensor is chosen only after it has answered; monitors that know their total but can't read it now stay the
fallback.
"""

from __future__ import annotations

import re
import time

from edgetune import schema
from edgetune.device.board import DEVICE_TREES
from edgetune.device.catalogue import BoardEntry
from edgetune.device.power.base import EnergyCounter, Facts, PowerSource, Reading, sum_known
from edgetune.device.power.battery import find_batteries
from edgetune.device.power.constant import LinearModel, UserConstant
from edgetune.device.power.ina3221 import Rail, RailMonitors, SupplyMeter, find_rails
from edgetune.device.power.nvml import Gpus, find_gpus
from edgetune.device.power.pmic import Pmic
from edgetune.device.power.rapl import PERMISSION_HINT, Rapl, find_rapl
from edgetune.device.power.tegrastats import find_tegrastats
from edgetune.device.system import System
from edgetune.errors import InputError

_REVISION = re.compile(r"\bRev (\d+\.\d+)")
_PMIC_HINT = "The power chip did not answer: join the group `video`, or give a container --device /dev/vcio."
_LOOK_AGAIN_S = 0.05  # between the two looks that a counter or a utilisation needs


class Host:
    """A processor's counters and graphics cards together: what a host with both draws for training."""

    name = "rapl+nvml"
    scope = "cpu-package+gpu"
    measured = True

    def __init__(self, rapl: Rapl, gpus: Gpus) -> None:
        self.parts, self.system = (rapl, gpus), rapl.system

    def read(self) -> Reading:
        """Both now."""
        readings = [part.read() for part in self.parts]
        rails = {name: watts for reading in readings for name, watts in reading.rails.items()}
        return Reading(sum_known(reading.total_w for reading in readings), rails)

    def facts(self) -> Facts:
        """What each says of itself."""
        parts = [part.facts() for part in self.parts]
        return Facts(interval_s=parts[1].interval_s, notes=(*parts[0].notes, *parts[1].notes))


def find_power(
    system: System,
    board: schema.Board,
    entry: BoardEntry | None,
    user_w: float | None = None,
    *,
    meter: str | None = None,
) -> PowerSource | None:
    """The source to believe on this board, or None where nothing says anything.

    Args:
        system: where its files are.
        board: what it is.
        entry: its file of the catalogue, with the rule for its total and its power models.
        user_w: watts the user gives (`--power`); they win over a sensor, with a warning.
        meter: the hwmon chip (`ina219`, or a part of its path) that the user says measures the supply. Without such a
            word a chip that no device tree labels is listed only: it may as well sit on a battery.

    Raises:
        InputError: `meter` names no chip of this board.
    """
    rails = find_rails(system)
    if meter is not None:
        return SupplyMeter(system, _named(rails, meter))
    sensor = _find_sensor(system, entry, rails, wanted=user_w is None)
    if user_w is not None:
        if sensor is not None and not (isinstance(sensor, RailMonitors) and sensor.read().total_w is None):
            system.warn(f"--power is used instead of the sensor {sensor.name}; leave it out to measure.")
        close_power(sensor)
        return UserConstant(user_w)
    if sensor is not None:
        return sensor
    if entry is not None and (model := _find_model(system, board, entry)) is not None:
        return model
    # rails that add up to nothing known are still worth listing
    return RailMonitors(system, rails, entry) if any(rail.labelled for rail in rails) else None


def facts_of(source: PowerSource) -> Facts:
    """What a source says of itself; nothing where it has nothing to say."""
    found: Facts = source.facts() if hasattr(source, "facts") else Facts()
    return found


def describe_power(system: System, source: PowerSource | None, entry: BoardEntry | None) -> schema.Power:
    """What the profile says of a source: one reading, and what has to be known to use the figure.

    Args:
        system: where the board's files are.
        source: what `find_power` chose.
        entry: the board's file of the catalogue, which may say why there is no sensor.
    """
    if source is None:
        return schema.Power(note=_join([_reason(system, entry), *_unused(system, None)]))
    reading = _settled(source)
    facts = facts_of(source)
    stands = "its counter did not move between two looks" if reading.total_w is None and source.name == "rapl" else ""
    return schema.Power(
        source=source.name,
        scope=source.scope,
        total_w=reading.total_w,
        total_corrected_w=reading.corrected_w,
        rails=dict(reading.rails),
        measured=source.measured,
        model=facts.model,
        interval_s=facts.interval_s,
        note=_join([*facts.notes, stands, *_unused(system, source)]),
    )


def _find_sensor(system: System, entry: BoardEntry | None, rails: list[Rail], *, wanted: bool) -> PowerSource | None:
    """The first sensor that has answered; where one is `wanted`, a warning says why the board's own did not."""
    monitors = RailMonitors(system, [rail for rail in rails if rail.labelled], entry)
    if monitors.rule is not None and monitors.read().total_w is not None:
        return monitors
    if entry is not None and entry.kind == "jetson" and (tool := find_tegrastats(system, entry)) is not None:
        if tool.read().total_w is not None:
            return tool
        tool.close()
    if monitors.rule is not None:
        return monitors
    if entry is not None and entry.power.sensor == "rpi-pmic":
        pmic = Pmic(system, entry)
        if pmic.read().total_w is not None:
            return pmic
        if wanted:
            instead = "modelled from CPU use, not measured" if entry.power.models else "unknown"
            system.warn(f"{_unread(pmic)} Until then this board's power is {instead}.")
    rapl, gpus = find_rapl(system), find_gpus(system)
    if rapl is not None and rapl.read_j() is None:
        rapl = None
    if rapl is not None and gpus is not None:
        return Host(rapl, gpus)
    if rapl is not None or gpus is not None:
        return rapl or gpus
    batteries = find_batteries(system)
    return batteries if batteries is not None and batteries.read().total_w is not None else None


def _unread(pmic: Pmic) -> str:
    """Why a Raspberry Pi's power chip gave no total, and how to get one."""
    if pmic.trouble is None:
        return _PMIC_HINT
    return _PMIC_HINT.replace("did not answer:", f"did not answer ({pmic.trouble}):")


def _find_model(system: System, board: schema.Board, entry: BoardEntry) -> LinearModel | None:
    """The published model for this board, named as a guess where it was fitted to another revision."""
    trees = (system.text(f"{base}/model") for base in DEVICE_TREES)
    text = next((text for text in trees if text), board.name)
    revision = _REVISION.search(text)
    found = entry.power_model(revision[1] if revision else None, word_bits(system, board))
    if found is None:
        return None
    model, exact = found
    name = model.name if exact else f"{model.name} (nearest published model: a guess for this board)"
    return LinearModel(system, name, model.slope_w, model.idle_w)


def word_bits(system: System, board: schema.Board) -> int | None:
    """32 or 64, of the user land: a 64-bit kernel under a 32-bit system still calls itself aarch64."""
    if system.glob("/lib/ld-linux-aarch64.so*") or system.glob("/usr/lib/ld-linux-aarch64.so*"):
        return 64
    if system.glob("/lib/ld-linux-armhf.so*") or system.glob("/usr/lib/ld-linux-armhf.so*"):
        return 32
    if board.arch is None:
        return None
    return 64 if board.arch in {"aarch64", "arm64", "x86_64"} else 32 if board.arch.startswith("arm") else None


def _settled(source: PowerSource) -> Reading:
    """A reading; counters and utilisations need a second look shortly after the first."""
    reading = source.read()
    system = getattr(source, "system", None)
    if isinstance(source, (EnergyCounter, Host)) and system is not None:
        began_s = system.clock()
        time.sleep(_LOOK_AGAIN_S)
        if system.clock() > began_s:
            reading = source.read()
    return reading


def _named(rails: list[Rail], meter: str) -> Rail:
    """The rail whose name or path the user gave."""
    for rail in rails:
        if meter == rail.name or meter in rail.chip.split("/"):
            return rail
    known = ", ".join(f"{rail.name} ({rail.chip.rsplit('/', 1)[1]})" for rail in rails) or "none"
    raise InputError(f"No power chip is called {meter!r}; this board has: {known}.")


def _reason(system: System, entry: BoardEntry | None) -> str:
    """Why there is no figure, as a sentence."""
    if entry is not None and entry.power.no_sensor:
        return entry.power.no_sensor
    if PERMISSION_HINT in system.warnings:
        return PERMISSION_HINT
    if entry is not None and entry.power.sensor == "rpi-pmic":
        return _PMIC_HINT
    return "No power sensor was found: give the board's watts with --power to have energy estimated."


def _unused(system: System, source: PowerSource | None) -> list[str]:
    """Chips that are there and not read."""
    if isinstance(source, SupplyMeter):
        return []
    found = []
    for rail in find_rails(system):
        if not rail.labelled:
            place = rail.chip.rsplit("/", 1)[1]
            found.append(f"{rail.name} at {place} is not used: nothing says what it measures, it may be a battery")
    return found


def _join(notes: list[str]) -> str | None:
    """Notes as one text."""
    return "; ".join(note.rstrip(".") for note in notes if note) + "." if any(notes) else None


def close_power(source: PowerSource | None) -> None:
    """End what a source keeps running (the tool tegrastats); the others keep nothing."""
    close = getattr(source, "close", None)
    if close is not None:
        close()
