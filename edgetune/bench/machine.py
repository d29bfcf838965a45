"""What a run records about the machine it took place on, and about who else used it meanwhile."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import psutil

from edgetune.__about__ import __version__
from edgetune.bench.records import Machine
from edgetune.device.board import identify_entry
from edgetune.device.energy import EnergyMeter, idle_seconds
from edgetune.device.memory import read_memory
from edgetune.device.power import facts_of, find_power
from edgetune.device.system import System

_PACKAGES = (
    *("accelerate", "numpy", "onnxruntime", "peft", "pillow", "timm", "torch", "torchao", "torchvision"),
    "transformers",
)
_IDLE_S, _LONGEST_IDLE_S = 3.0, 16.0
_PACKAGE_FOLDER = Path(__file__).parents[1]


def describe_machine(system: System) -> Machine:
    """Processor, cores, memory, kernel, and the versions that matter. No host name, no paths."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Machine(
        processor=_processor(),
        cores=os.cpu_count(),
        memory_bytes=read_memory(system).total_bytes,
        kernel=platform.release(),
        python=platform.python_version(),
        versions=versions,
        edgetune_version=__version__,
        commit=_commit(),
    )


def measure_idle(system: System, power_w: float | None) -> float | None:
    """Watts of the machine with nothing of the benchmark running; None where no sensor measures them."""
    board, entry = identify_entry(system)
    source = find_power(system, board, entry, power_w)
    if source is None or not source.measured:
        return None
    window_s = facts_of(source).interval_s or 0.0
    seconds = idle_seconds(window_s, _IDLE_S, _LONGEST_IDLE_S)
    if seconds is None:
        return None
    with EnergyMeter(source) as meter:
        time.sleep(window_s)  # or a slow sensor would still show what ran before
        return meter.idle(seconds)


def temperatures(
    before: Mapping[str, int | None], after: Mapping[str, int | None]
) -> dict[str, tuple[int | None, int | None]]:
    """Of every thermal zone, in thousandths of a degree Celsius, at two readings of `read_throttle`."""
    zones = sorted(key for key in {*before, *after} if key.startswith("temp_") and key.endswith("_mc"))
    return {zone[5:-3]: (before.get(zone), after.get(zone)) for zone in zones}


class Bystanders:
    """How much of the processor others take while children of this process run, from now on."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._busy_s, self._own_s = _busy_s(), _own_s()

    def share(self) -> float | None:
        """Of all cores' time since: what neither this process nor its ended children used; None where unknown."""
        busy_s, cores = _busy_s(), os.cpu_count()
        seconds = time.monotonic() - self._start
        if busy_s is None or self._busy_s is None or cores is None or seconds <= 0:
            return None
        others_s = busy_s - self._busy_s - (_own_s() - self._own_s)
        return max(0.0, others_s / (seconds * cores))


def _busy_s() -> float | None:
    """Processor time of the whole system since it started."""
    try:
        times = psutil.cpu_times()
    except (OSError, RuntimeError):
        return None
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))


def _own_s() -> float:
    """Processor time of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _processor() -> str:
    """Its name where the kernel knows one (x86), else the board's, else the architecture."""
    for path, key in (("/proc/cpuinfo", "model name"), ("/proc/device-tree/model", None)):
        try:
            text = Path(path).read_text(errors="replace")
        except OSError:
            continue
        if key is None:
            return text.strip("\0 \n")
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return platform.machine()


def _commit() -> str | None:
    """The commit of a source checkout, with `-dirty` where files were changed; None for an installed package."""
    if not (_PACKAGE_FOLDER.parent / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=_PACKAGE_FOLDER, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
