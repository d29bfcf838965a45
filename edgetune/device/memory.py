"""How much memory may really be used: what the kernel has, what a control group leaves, and whether it is enforced.

`/proc/meminfo` is the machine's, in containers too. A control group's limit is the lowest along the ancestors, and each
ancestor leaves what its other members have not used. Raspberry Pi OS accepts limits and enforces none unless the memory
controller is switched on. On a Jetson, GPU memory is the same memory and is charged to no control group.

Sources: kernel `Documentation/admin-guide/cgroup-v1/memory.rst` and `cgroup-v2.rst`, `filesystems/proc.rst`;
NVIDIA's CUDA for Tegra note; pi-gen issue 917 (Raspberry Pi OS).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from edgetune.device.board import identify_entry
from edgetune.device.catalogue import BoardEntry
from edgetune.device.reading import parse_number, read_number, read_text
from edgetune.device.system import System
from edgetune.schema import Memory

_V2 = "/sys/fs/cgroup"
_V1 = "/sys/fs/cgroup/memory"
_MOST_KB = 1 << 44  # 16 PiB; what exceeds it is a broken file
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class Groups:
    """This process's place in the control groups."""

    v1: str | None = None  # path in the memory hierarchy of version 1
    v2: str | None = None


@dataclass(frozen=True)
class Limit:
    """What the control groups leave."""

    limit_bytes: int | None = None
    source: str | None = None  # the file with the lowest limit
    room_bytes: int | None = None  # lowest difference of limit and use along the ancestors
    enforced: bool | None = None  # whether the kernel would enforce a limit at all


def read_memory(system: System, entry: BoardEntry | None = None) -> Memory:
    """Memory as found; `entry` is the board's, where it is known already."""
    entry = entry or identify_entry(system)[1]
    info = parse_meminfo(read_text(system, "/proc/meminfo") or "")
    total = info.get("MemTotal")
    if total is None:
        system.warn("/proc/meminfo names no MemTotal; the machine's memory is unknown: give --memory.")
    available = info.get("MemAvailable", info.get("MemFree"))  # kernels before 3.14 have no MemAvailable
    if total is not None and available is not None and available > total:
        system.warn("/proc/meminfo says more is available than there is; what is available is unknown: give --memory.")
        available = None
    limit = read_limit(system, total)
    if limit.enforced is False:
        system.warn(
            "Memory limits (MemoryMax=, docker --memory) are accepted and not enforced here: the kernel's memory"
            f" controller is off (it is missing in {_V2}/cgroup.controllers)."
        )
    return Memory(
        total_bytes=total,
        available_bytes=available,
        limit_bytes=limit.limit_bytes,
        limit_source=limit.source,
        limit_room_bytes=limit.room_bytes,
        limit_enforced=limit.enforced,
        swap_bytes=info.get("SwapTotal"),
        unified=_unified(system, entry, info),
        page_bytes=_page_bytes(system),
        shm_bytes=_shm_bytes(system),
        zram_bytes=_zram_bytes(system),
        nvmap_used_bytes=info.get("NvMapMemUsed"),
    )


def usable_bytes(memory: Memory) -> int | None:
    """What a process may still take: MemAvailable, or less where an enforced control group leaves less."""
    room = memory.limit_room_bytes if memory.limit_room_bytes is not None else memory.limit_bytes
    known = [memory.available_bytes, room if memory.limit_enforced else None]
    return min((size for size in known if size is not None), default=None)


def read_limit(system: System, total_bytes: int | None) -> Limit:
    """The lowest memory limit along this process's control groups, and the least room."""
    groups = parse_cgroup(read_text(system, "/proc/self/cgroup") or "")
    enforced = _enforced(system, groups)
    if groups.v1 is not None:
        base, path, used_name, cache = _V1, groups.v1, "memory.usage_in_bytes", "total_inactive_file"
        limit_names = ["memory.limit_in_bytes"]
    elif groups.v2 is not None:
        base, path, used_name, cache = _V2, groups.v2, "memory.current", "inactive_file"
        limit_names = ["memory.max", "memory.high"]
    else:
        return Limit(enforced=enforced)
    lowest: tuple[int, str] | None = None
    room: int | None = None
    for folder in _ancestors(base, path):
        limits = []
        for name in limit_names:
            text = read_text(system, f"{folder}/{name}")
            if text is None or text == "max":
                continue
            if parse_number(text) is None:
                system.warn(f"{folder}/{name} holds no number; whether a limit is set there is unknown.")
            value = parse_limit(text, total_bytes)
            if value is not None:
                limits.append((value, f"{folder}/{name}"))
        if not limits:
            continue
        lowest = min(limits if lowest is None else [lowest, *limits])
        used = read_number(system, f"{folder}/{used_name}")
        if used is not None:
            # Inactive file pages go first when room is needed: they are no one's loss.
            reclaimable = parse_stat(read_text(system, f"{folder}/memory.stat") or "").get(cache, 0)
            left = max(0, min(limits)[0] - max(0, used - reclaimable))
            room = left if room is None else min(room, left)
    if lowest is None:
        return Limit(enforced=enforced)
    return Limit(lowest[0], lowest[1], room, True if enforced is None else enforced)


# ---------------------------------------------------------------------------------------------------------------------
# parsers: text to value, for anything a file may hold
# ---------------------------------------------------------------------------------------------------------------------


def parse_meminfo(text: str) -> dict[str, int]:
    """Bytes by name; lines that are no `Name: number kB` are left out."""
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([A-Za-z][\w()]*):\s+([0-9]{1,18}) kB\s*", line)
        if match and int(match[2]) < _MOST_KB:
            found[match[1]] = int(match[2]) * 1024
    return found


def parse_cgroup(text: str) -> Groups:
    """The paths in `/proc/self/cgroup`; `..` (a group outside the namespace) leads to what can be seen, the top."""
    v1 = v2 = None
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not colon or not number.isdigit() or not path.startswith("/") or "\0" in path:
            continue
        path = "/" if ".." in path.split("/") else path
        if "memory" in controllers.split(","):
            v1 = path
        elif number == "0" and not controllers:
            v2 = path
    return Groups(v1, v2)


def parse_limit(text: str, total_bytes: int | None) -> int | None:
    """A limit's bytes, or None for `max`, for anything not below the machine's memory, and for nonsense."""
    value = parse_number(text)
    if value is None or value < 0 or value >= (total_bytes if total_bytes is not None else 1 << 60):
        return None
    return value


def parse_stat(text: str) -> dict[str, int]:
    """`name number` lines, as in memory.stat and vmstat."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        number = parse_number(value)
        if number is not None and number >= 0:
            found[name] = number
    return found


def parse_swaps(text: str) -> dict[str, int]:
    """Bytes of each swap device or file in `/proc/swaps`."""
    found = {}
    for line in text.splitlines()[1:]:
        match = re.match(r"(\S+)\s+\S+\s+([0-9]{1,18})\s", line + " ")
        if match and int(match[2]) < _MOST_KB:
            found[match[1]] = int(match[2]) * 1024
    return found


def parse_shm_size(mounts: str) -> int | None:
    """The size option of the tmpfs at /dev/shm in `/proc/mounts`."""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) >= 4 and fields[1] == "/dev/shm" and fields[2] == "tmpfs":
            match = re.search(r"(?:^|,)size=([0-9]{1,15})([kmg]?)(?:,|$)", fields[3])
            return int(match[1]) * _UNITS[match[2]] if match else None
    return None


def controllers_enforce(controllers: str | None, command_line: str) -> bool | None:
    """Whether version 2 enforces memory limits: its list of controllers says so, the kernel's command line hints."""
    if controllers is not None:
        return "memory" in controllers.split()
    words = command_line.split()
    last = {word.partition("=")[0]: index for index, word in enumerate(words) if "memory" in word.partition("=")[2]}
    if "cgroup_disable" in last:
        return last.get("cgroup_enable", -1) > last["cgroup_disable"]
    return None


# ---------------------------------------------------------------------------------------------------------------------
# pieces
# ---------------------------------------------------------------------------------------------------------------------


def _enforced(system: System, groups: Groups) -> bool | None:
    if groups.v1 is not None:
        return True  # version 1 lists the controller only where it is switched on
    controllers = read_text(system, f"{_V2}/cgroup.controllers")
    return controllers_enforce(controllers, read_text(system, "/proc/cmdline") or "")


def _ancestors(base: str, path: str) -> list[str]:
    """The group's folder and every folder above it up to the base, as far as this mount shows them."""
    parts = [part for part in path.split("/") if part]
    return ["/".join([base, *parts[:count]]) for count in range(len(parts), -1, -1)]


def _unified(system: System, entry: BoardEntry, info: dict[str, int]) -> bool | None:
    if entry.unified_memory is not None:
        return entry.unified_memory
    if "NvMapMemUsed" in info:
        return True
    return False if system.glob("/proc/driver/nvidia/gpus/*/information") else None


def _page_bytes(system: System) -> int | None:
    """The page size of this kernel; another root's can't be known from its files."""
    if system.live:
        return os.sysconf("SC_PAGE_SIZE")
    size = parse_number(system.command("getconf", "PAGE_SIZE") or "")
    return size if size is not None and 1 << 12 <= size <= 1 << 20 and size & (size - 1) == 0 else None


def _shm_bytes(system: System) -> int | None:
    if system.live:
        try:
            found = os.statvfs("/dev/shm")
        except OSError:
            return None
        return found.f_bavail * found.f_frsize
    return parse_shm_size(read_text(system, "/proc/mounts") or "")


def _zram_bytes(system: System) -> int | None:
    """Room of the compressed swap in memory; 0 where swap is known and none of it is compressed."""
    text = read_text(system, "/proc/swaps")
    if text is not None:
        return sum(size for name, size in parse_swaps(text).items() if name.startswith("/dev/zram"))
    sizes = [read_number(system, path) for path in system.glob("/sys/block/zram*/disksize")]
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None
