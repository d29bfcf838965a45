"""Throttling, read before and after: what slowed the machine leaves traces in counters only.

Keys say how to compare two readings: `_count` only ever grows, `_since_boot` is a bit that stays set until the next
boot, `_now` holds at this moment, `_mc` is a temperature in thousandths of a degree Celsius. `delta` compares them and
`throttled` judges. A bit that was set before says nothing about the time between: unknown, not 0.

Sources: kernel `Documentation/ABI/testing/sysfs-class-thermal`, L4T's soctherm over-current events, the Raspberry Pi
documentation of `vcgencmd get_throttled`, kernel `Documentation/arch/x86/` (thermal_throttle).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgetune.device.advice import advice as advice  # the other half of "read before and after, and say what to do"
from edgetune.device.memory import parse_stat
from edgetune.device.reading import parse_number, read_number, read_text
from edgetune.device.system import System

_OVER_CURRENT = {1: "under_voltage", 2: "average_over_current", 3: "instantaneous_over_current"}
_BITS = {0: "under_voltage", 1: "frequency_capped", 2: "throttled", 3: "soft_temperature_limit"}
_VMSTAT = {"pswpin": "swap_in_pages_count", "pswpout": "swap_out_pages_count", "oom_kill": "oom_kill_count"}
_NOT_THROTTLING = set(_VMSTAT.values())
_GATED_MC = -256_000  # a powered-down zone on a Jetson
_COLDEST_MC, _HOTTEST_MC = -60_000, 200_000
_CONSTANT_ZONES = {"pmic-die"}  # a fixed 100 or 50 degrees on Jetsons


def read_throttle(system: System) -> dict[str, int | None]:
    """Every counter, bit and temperature this machine has; None where it has one that can't be read now."""
    found: dict[str, int | None] = {}
    for path in system.glob("/sys/class/hwmon/hwmon*/name"):
        folder = path.removesuffix("/name")
        name = read_text(system, path)
        if name == "soctherm_oc":
            for number, cause in _OVER_CURRENT.items():
                count = read_number(system, f"{folder}/oc{number}_event_cnt")
                if count is not None or system.exists(f"{folder}/oc{number}_event_cnt"):
                    found[f"oc{number}_{cause}_count"] = count if count is None or count >= 0 else None
        elif name == "rpi_volt":
            found["under_voltage_alarm_now"] = read_number(system, f"{folder}/in0_lcrit_alarm")
    found |= _pi_bits(system)
    found |= _alerts(system)
    found |= _x86_counts(system)
    stat = parse_stat(read_text(system, "/proc/vmstat") or "")
    found |= {key: stat[name] for name, key in _VMSTAT.items() if name in stat}
    return found | _temperatures(system)


def delta(before: Mapping[str, int | None], after: Mapping[str, int | None]) -> dict[str, int | None]:
    """What happened between two readings: events, new bits, the worst state seen, the rise in temperature."""
    changes: dict[str, int | None] = {}
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        if key.endswith("_now"):
            changes[key] = max((value for value in (old, new) if value is not None), default=None)
        elif old is None or new is None:
            changes[key] = None
        elif key == "get_throttled":
            changes[key] = new & ~old
        elif key.endswith("_since_boot"):
            active = key.removesuffix("_since_boot") + "_now"
            seen = max(before.get(active) or 0, after.get(active) or 0)
            changes[key] = 1 if seen or new > old else None if old else 0
        elif key.endswith("_count"):
            changes[key] = new - old if new >= old else None  # a counter that fell was reset in between
        else:
            changes[key] = new - old
    return changes


def throttled(changes: Mapping[str, int | None]) -> bool | None:
    """Whether anything slowed the machine in between: None where nothing could have told."""
    telling = [
        value
        for key, value in changes.items()
        if key.endswith(("_count", "_now", "_since_boot")) and key not in _NOT_THROTTLING
    ]
    if any(value for value in telling):
        return True
    return False if telling and None not in telling else None


def slowing(before: Mapping[str, int | None], after: Mapping[str, int | None]) -> str | None:
    """What slowed the machine between two readings, and how hot it is now; None where nothing is known to have."""
    changes = delta(before, after)
    if not throttled(changes):
        return None
    causes = [name for name, value in changes.items() if value and throttled({name: value})]
    hot = [value for name, value in after.items() if value is not None and name.endswith("_mc")]
    return ", ".join(causes) + (f"; the hottest zone has {max(hot) / 1000:.0f} °C now" if hot else "")


# ---------------------------------------------------------------------------------------------------------------------
# parsers
# ---------------------------------------------------------------------------------------------------------------------


def parse_get_throttled(text: str) -> int | None:
    """The bits of `throttled=0x50005` (vcgencmd) or `50005` (sysfs), or None for anything else."""
    match = re.fullmatch(r"(?:throttled=)?(?:0[xX])?([0-9a-fA-F]{1,8})", text.strip("\0 \t\r\n"))
    return int(match[1], 16) if match else None


def parse_temperature(text: str) -> int | None:
    """Thousandths of a degree Celsius, or None for a powered-down zone's sentinel, the impossible and nonsense."""
    number = parse_number(text)
    return number if number is not None and _COLDEST_MC <= number <= _HOTTEST_MC else None


# ---------------------------------------------------------------------------------------------------------------------
# pieces
# ---------------------------------------------------------------------------------------------------------------------


def _key(text: str) -> str:
    """A zone's or cooling device's type as part of a key."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:40]


def _pi_bits(system: System) -> dict[str, int | None]:
    """The firmware's bits. The command never clears them; the file of some kernels might, so it comes second."""
    bits = None
    if not system.live or system.exists("/dev/vcio") or system.exists("/dev/vcio_gencmd"):
        bits = parse_get_throttled(system.command("vcgencmd", "get_throttled") or "")
    if bits is None:
        for path in system.glob("/sys/devices/platform/soc*/soc*:firmware/get_throttled"):
            text = read_text(system, path)
            bits = parse_get_throttled(text or "")
            if bits is None:
                if text is not None:
                    system.warn(f"{path} holds no hexadecimal number; whether the board was throttled is unknown.")
                return {"get_throttled": None}
    if bits is None:
        return {}
    found: dict[str, int | None] = {"get_throttled": bits}
    for bit, name in _BITS.items():
        found[f"{name}_now"] = bits >> bit & 1
        found[f"{name}_since_boot"] = bits >> (bit + 16) & 1
    return found


def _alerts(system: System) -> dict[str, int | None]:
    """Cooling devices that stand for a throttle in force (JetPack 5 and later)."""
    found: dict[str, int | None] = {}
    for path in system.glob("/sys/class/thermal/cooling_device*/type"):
        kind = read_text(system, path) or ""
        if kind.endswith("-throttle-alert"):
            key = f"{_key(kind)}_now"
            state = read_number(system, path.removesuffix("type") + "cur_state")
            found[key] = max((value for value in (found.get(key), state) if value is not None), default=None)
    return found


def _x86_counts(system: System) -> dict[str, int | None]:
    """Thermal throttle events: the cores' added up, the package's once (each of its cores repeats it)."""
    base = "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle"
    cores = [read_number(system, path) for path in system.glob(f"{base}/core_throttle_count")]
    packages = [read_number(system, path) for path in system.glob(f"{base}/package_throttle_count")]
    found: dict[str, int | None] = {}
    if cores:
        found["core_throttle_count"] = None if None in cores else sum(count or 0 for count in cores)
    if packages:
        found["package_throttle_count"] = max((count for count in packages if count is not None), default=None)
    return found


def _temperatures(system: System) -> dict[str, int | None]:
    """Every thermal zone by its type; of zones of one type the hottest."""
    found: dict[str, int | None] = {}
    for path in system.glob("/sys/class/thermal/thermal_zone*/type"):
        kind = read_text(system, path) or ""
        if not _key(kind) or kind.lower() in _CONSTANT_ZONES:
            continue
        place = path.removesuffix("type") + "temp"
        text = read_text(system, place)
        value = parse_temperature(text) if text is not None else None
        if text is not None and value is None and parse_number(text) != _GATED_MC:
            system.warn(f"{place} holds no believable temperature; the temperature of {_key(kind)} is unknown.")
        key = f"temp_{_key(kind)}_mc"
        found[key] = max((known for known in (found.get(key), value) if known is not None), default=None)
    return found
