"""Power modes, clocks, governor and fan, as found. Nothing is ever set.

A Jetson's power mode is asked of `nvpmodel -q`; where the command is missing (containers, another root) its state file
and configuration say the same. A mode's name is a budget its maker had in mind, no cap: the clocks tell what it means.

Sources: nvpmodel's configuration and output as users posted them, kernel `sysfs-class-devfreq` and
`admin-guide/pm/cpufreq.rst`, jetson_stats (paths of fans and GPUs).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from edgetune.device.reading import parse_number, read_number, read_text
from edgetune.device.system import System
from edgetune.schema import Modes

_CONF = "/etc/nvpmodel.conf"
_STATUS = "/var/lib/nvpmodel/status"
_GPU_NODES = {"gpu", "gv11b", "gp10b", "ga10b", "gb10b"}
_MOST_HZ = 20_000_000_000
_MOST_CPUS = 4096
_LONGEST = 64  # characters of a mode's name


@dataclass(frozen=True)
class PowerMode:
    """What `nvpmodel -q` answers."""

    id: int
    name: str
    fan: str | None = None


@dataclass(frozen=True)
class Clock:
    """One GPU's clock and bounds, in hertz."""

    now_hz: int | None
    min_hz: int | None
    max_hz: int | None


def read_modes(system: System) -> Modes:
    """Modes and clocks; what a machine has not stays None or empty."""
    modes = _configured(system)
    current, fan = _current(system, modes)
    gpu = _gpu(system)
    folders = _cpu_folders(system)
    cpu = [(_khz(system, f"{path}/scaling_cur_freq"), _khz(system, f"{path}/scaling_max_freq")) for path in folders]
    governors = list(dict.fromkeys(text for path in folders if (text := read_text(system, f"{path}/scaling_governor"))))
    return Modes(
        current=current,
        available=[modes[number] for number in sorted(modes)],
        governor="+".join(governor[:_LONGEST] for governor in governors[:4]) or None,
        cpu_hz=[now for now, _ in cpu if now is not None],
        cpu_max_hz=[most for _, most in cpu if most is not None],
        gpu_hz=gpu.now_hz if gpu else None,
        gpu_max_hz=gpu.max_hz if gpu else None,
        clocks_locked=gpu.min_hz == gpu.max_hz if gpu and gpu.min_hz is not None and gpu.max_hz is not None else None,
        fan=fan or _fan(system),
    )


# ---------------------------------------------------------------------------------------------------------------------
# parsers: text to value, for anything a file or command may say
# ---------------------------------------------------------------------------------------------------------------------


def parse_nvpmodel(output: str) -> PowerMode | None:
    """The mode in the output of `nvpmodel -q`; warnings and errors around a valid answer don't matter."""
    match = re.search(r"NV Power Mode:[ \t]*(\S{1,64})[ \t\r]*\n[ \t]*([0-9]{1,3})[ \t\r]*(?:\n|$)", output)
    if match is None:
        return None
    fan = re.search(r"^NV Fan Mode:[ \t]*(\w{1,64})", output, re.MULTILINE)
    return PowerMode(int(match[2]), _printable(match[1]), _printable(fan[1]) if fan else None)


def parse_nvpmodel_conf(text: str) -> dict[int, str]:
    """Modes by number in an nvpmodel configuration; ID and NAME come in either order."""
    modes: dict[int, str] = {}
    for line in text.splitlines():
        match = re.match(r"\s*<\s*POWER_MODEL\s+([^>]*)>", line)
        if match is None:
            continue
        fields = dict(pair.split("=", 1) for pair in match[1].split() if "=" in pair)
        number = parse_number(fields.get("ID", ""))
        name = _printable(fields.get("NAME", ""))
        if number is not None and 0 <= number < 1000 and name:
            modes.setdefault(number, name)
    return modes


def parse_nvpmodel_status(text: str) -> tuple[int | None, str | None]:
    """Mode number and fan profile in nvpmodel's state file, `pmode:0002 fmode:fan_mode_quiet`."""
    mode = re.search(r"(?:^|\s)pmode:([0-9]{1,6})(?:\s|$)", text)
    fan = re.search(r"(?:^|\s)fmode:(?:fan_mode_)?(\w{1,64})", text)
    return int(mode[1]) if mode else None, _printable(fan[1]) if fan else None


def parse_cpu_list(text: str) -> list[int] | None:
    """The numbers of `0-3,6`, or None for anything else."""
    numbers: set[int] = set()
    for piece in text.strip("\0 \t\r\n").split(","):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", piece)
        if match is None:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= _MOST_CPUS:
            return None
        numbers.update(range(first, last + 1))
    return sorted(numbers)


# ---------------------------------------------------------------------------------------------------------------------
# pieces
# ---------------------------------------------------------------------------------------------------------------------


def _printable(text: str) -> str:
    return "".join(filter(str.isprintable, text))[:_LONGEST]


def _configured(system: System) -> dict[int, str]:
    """Modes of the configuration. Its link is absolute, and on another root must stay below that root."""
    try:
        target = os.readlink(system.path(_CONF))
        path = target if target.startswith("/") else f"/etc/{target}"
    except OSError:
        path = _CONF
    return parse_nvpmodel_conf(read_text(system, path) or "")


def _current(system: System, modes: dict[int, str]) -> tuple[str | None, str | None]:
    """The mode's name and the fan profile."""
    mode = None
    if modes or system.exists(_STATUS) or not system.live:  # no process for nothing on a machine that is no Jetson
        mode = parse_nvpmodel(system.command("nvpmodel", "-q") or "")
    number, fan = parse_nvpmodel_status(read_text(system, _STATUS) or "")
    if mode is not None:
        return mode.name, mode.fan or fan
    return (modes.get(number) if number is not None else None), fan


def _cpu_folders(system: System) -> list[str]:
    """The cpufreq folder of every processor that is online."""
    online = parse_cpu_list(read_text(system, "/sys/devices/system/cpu/online") or "")
    found = system.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq")
    if online is None:
        return found
    wanted = {f"/sys/devices/system/cpu/cpu{number}/cpufreq" for number in online}
    return [path for path in found if path in wanted]


def _khz(system: System, path: str) -> int | None:
    """A clock in hertz of a file in kilohertz."""
    return _believable(system, path, 1000)


def _believable(system: System, path: str, factor: int) -> int | None:
    number = read_number(system, path)
    if number is None:
        return None
    if not 0 <= number * factor <= _MOST_HZ:
        system.warn(f"{path} holds no believable clock ({str(number)[:20]}); the clock is unknown.")
        return None
    return number * factor


def _gpu(system: System) -> Clock | None:
    """The GPU that computes: a Tegra devfreq node, the first graphics cluster on Thor, any other GPU's last."""
    ranked = []
    for path in system.glob("/sys/class/devfreq/*"):
        name = path.rpartition("/")[2]
        node = (read_text(system, f"{path}/device/of_node/name") or "").lower()
        if node in _GPU_NODES or name.partition(".")[2] in _GPU_NODES or name.startswith("gpu"):
            ranked.append((0 if "gpc" in name else 2 if "nvd" in name else 1, name, path))
    for _, _, path in sorted(ranked):
        now, low, high = (_believable(system, f"{path}/{part}_freq", 1) for part in ("cur", "min", "max"))
        if (now, low, high) != (None, None, None):
            return Clock(now, low, high)
    return None


def _fan(system: System) -> str | None:
    """A fan's drive, where no profile is named: of 255, and its speed where it is measured."""
    for path in system.glob("/sys/class/hwmon/hwmon*/name"):
        folder = path.removesuffix("/name")
        if read_text(system, path) == "pwmfan":
            drive = read_number(system, f"{folder}/pwm1")
            speed = read_number(system, f"{folder}/fan1_input")
            if drive is not None:
                return f"pwm {drive}/255" + (f", {speed} rpm" if speed is not None else "")
    drive = read_number(system, "/sys/devices/pwm-fan/target_pwm")
    return f"pwm {drive}/255" if drive is not None else None
