"""How close the machine is to running out of memory, whoever took it: read while something runs, so it has to be cheap.

MemAvailable falls when another process takes memory; a control group's room falls when anything inside it does;
pressure stall information says what share of the last ten seconds some task spent waiting for memory (kernel
Documentation/accounting/psi.rst, Linux 4.20 and later where it is compiled in and not switched off).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from edgetune.device.memory import parse_meminfo, read_limit
from edgetune.device.reading import read_text
from edgetune.device.system import System

_STALL_FILE = "/proc/pressure/memory"


class Pressure(NamedTuple):
    """What is left; None where it can't be read."""

    available_bytes: int | None = None  # of the machine
    total_bytes: int | None = None
    group_room_bytes: int | None = None  # of an enforced control group
    group_limit_bytes: int | None = None
    device_room_bytes: int | None = None  # of an accelerator with memory of its own; whoever trains on it knows
    stalled: float | None = None  # share of the last ten seconds in which some task waited for memory, 0 to 1


def read_pressure(system: System) -> Pressure:
    """As it is now."""
    info = parse_meminfo(read_text(system, "/proc/meminfo") or "")
    total = info.get("MemTotal")
    limit = read_limit(system, total)
    stalls = system.text(_STALL_FILE) if system.exists(_STALL_FILE) else None
    return Pressure(
        available_bytes=info.get("MemAvailable"),
        total_bytes=total,
        group_room_bytes=limit.room_bytes if limit.enforced else None,
        group_limit_bytes=limit.limit_bytes if limit.enforced else None,
        stalled=None if stalls is None else parse_stalled(stalls),
    )


def parse_stalled(text: str) -> float | None:
    """`some avg10=1.53 avg60=… total=…`: 0.0153; None for anything else."""
    match = re.search(r"^some avg10=([0-9]{1,3}\.[0-9]{1,4})\b", text, re.MULTILINE)
    share = None if match is None else float(match[1]) / 100
    return share if share is not None and share <= 1 else None


__all__ = ["Pressure", "parse_stalled", "read_pressure"]
