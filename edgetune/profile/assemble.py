"""`profile_device`: what the board says of itself, and what the probes measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgetune import schema
from edgetune.__about__ import __version__
from edgetune.device.advice import advice
from edgetune.device.board import identify_entry
from edgetune.device.energy import EnergyMeter, idle_seconds
from edgetune.device.memory import read_memory
from edgetune.device.modes import read_modes
from edgetune.device.power import PowerSource, close_power, describe_power, find_power
from edgetune.device.system import System
from edgetune.device.throttle import delta, read_throttle, throttled
from edgetune.profile.run import run_probes
from edgetune.schema import Compute, Power, Profile

_IDLE_S, _QUICK_IDLE_S = 4.0, 2.0  # at least; a sensor that averages over more needs more
_LONGEST_IDLE_S, _LONGEST_QUICK_IDLE_S = 16.0, 2.0
_BUSY_SHARE = 0.25  # of the cores; above it somebody else's work slows the probes


def profile_device(
    *, root: Path | str | None = None, quick: bool = False, power_w: float | None = None, probes: bool = True
) -> Profile:
    """Say what a machine is, has and can do.

    Args:
        root: another file-system root (a fixture, a mounted card); its files are read and probes are skipped.
        quick: fewer and shorter probes, under 20 s in all.
        power_w: watts the user says the machine draws.
        probes: False reads the board only, which takes moments.

    Raises:
        InputError: `root` is no folder.
    """
    system = System("/" if root is None else _checked_root(Path(root)))
    board, entry = identify_entry(system)
    source = find_power(system, board, entry, power_w)
    power = describe_power(system, source, entry)
    throttle = read_throttle(system)
    compute = Compute(cores=_cores())
    warnings: list[str] = []
    gpu_memory: dict[str, int] = {}
    if system.live and probes:
        power = _with_idle(power, source, quick)
        warnings += _busy_warning()
        compute, said, gpu_memory = run_probes(quick=quick, power_w=power_w, with_energy=source is not None)
        warnings += said
        after = read_throttle(system)
        if throttled(delta(throttle, after)):
            warnings.append("the processor was throttled while the probes ran: they are slower than a cool board's.")
        throttle = after
    else:
        reason = "no probe was asked for" if system.live else "another root was read (--root)"
        compute = Compute(cores=compute.cores if system.live else None, probe_error=f"{reason}, so nothing was timed")
    close_power(source)
    memory, modes = msgspec.structs.replace(read_memory(system, entry), **gpu_memory), read_modes(system)
    suggestions = advice(system, board, entry, memory, modes, throttle)
    return Profile(
        board=board,
        memory=memory,
        power=power,
        modes=modes,
        throttle=throttle,
        compute=compute,
        warnings=list(dict.fromkeys([*system.warnings, *warnings])),  # the child reads the same files
        advice=suggestions,
        edgetune_version=__version__,
        created=schema.now(),
    )


def _checked_root(root: Path) -> Path:
    if not root.is_dir():
        from edgetune.errors import InputError

        raise InputError(f"--root {root} is not a folder; give the top of a file-system tree.")
    return root.resolve()


def _with_idle(
    power: Power, source: PowerSource | None, quick: bool, sleep: Callable[[float], None] = time.sleep
) -> Power:
    """The power of doing nothing, where a sensor can tell in the time there is.

    A sensor shows the mean of its last window: one goes by first, so that what was done before is not taken for idling.
    """
    if source is None or not source.measured:
        return power
    window_s = power.interval_s or 0.0
    least_s, longest_s = (_QUICK_IDLE_S, _LONGEST_QUICK_IDLE_S) if quick else (_IDLE_S, _LONGEST_IDLE_S)
    seconds = idle_seconds(window_s, least_s, longest_s)
    if seconds is None:
        return power
    with EnergyMeter(source, sleep=sleep) as meter:
        sleep(window_s)
        return msgspec.structs.replace(power, idle_w=meter.idle(seconds))


def _busy_warning() -> list[str]:
    try:
        load = os.getloadavg()[0]
    except OSError:
        return []
    if load <= _BUSY_SHARE * (_cores() or 1):
        return []
    return [f"other work kept {load:.1f} cores busy in the last minute: rates and idle power are not an idle board's."]


def _cores() -> int | None:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count()
