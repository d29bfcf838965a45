"""The machine as planning needs it: from a profile that still holds, or from what can be read without one.

A profile of another board is refused, unless the plan is for that board; one whose power mode, threads or libraries
have changed since is used with a warning and wider bounds (`edgetune.plan.certainty`), since its probes timed something
else.
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import NamedTuple

from edgetune.device.board import identify_entry
from edgetune.device.memory import read_memory, usable_bytes
from edgetune.device.system import System
from edgetune.errors import InputError
from edgetune.model.spec import ViTSpec
from edgetune.plan.bill import UNMEASURED, FirstUse
from edgetune.plan.certainty import Doubt, certainty
from edgetune.plan.cost import watts_of
from edgetune.plan.rates import Rates
from edgetune.plan.workers import workers_that_fit
from edgetune.schema import Board, Engine, Memory, Power, Profile
from edgetune.units import format_size

DEFAULT_SHARE = 0.9  # of what may really be used, for a cap nobody named

# What the command, its plan and the trainer's modules add to the bare process that the profile's child measured: 536 to
# 537 MiB against 524 on x86_64 with Python 3.11.
COMMAND_BYTES = 13 << 20
# Resident memory of a bare training process, where no profile measured it. The first holds CUDA's libraries.
_RUNTIME_CUDA_BYTES, _RUNTIME_CPU_BYTES = 540 << 20, 420 << 20
# The same with onnxruntime in the place of torch (benchmarks/onnx_engine.py).
ONNX_RUNTIME_BYTES = 60 << 20
# A step with onnxruntime beside one with torch: 1.0 to 1.5 times as long (docs/onnx_engine.md).
_OTHER_ENGINE = 1.5
_SAME_MEMORY = 0.05  # of the total: a kernel keeps a little more or less for itself


class Machine(NamedTuple):
    """What planning needs to know of the machine."""

    memory: Memory
    runtime_bytes: int
    runtime_measured: bool
    first_use: FirstUse
    rates: Rates | None
    watts: float | None
    watts_source: str | None
    threads: int
    warnings: list[str]
    time_factor: float  # that times and energies may be off by, either way
    margin_bytes: int  # that the bare process may take beyond `runtime_bytes`

    def under(self, engine: Engine) -> Machine:
        """What planning for an engine needs to know; a profile's bare process is torch's."""
        if engine == "torch":
            return self
        margin = self.margin_bytes * ONNX_RUNTIME_BYTES // max(self.runtime_bytes, 1)  # the same share of it
        found = self._replace(runtime_bytes=ONNX_RUNTIME_BYTES, runtime_measured=False, margin_bytes=margin)
        if self.rates is None or not self.rates.known:
            return found
        doubt = Doubt("the profile's probes ran in torch, the plan is for onnxruntime", time=_OTHER_ENGINE)
        warnings = [*self.warnings, doubt.sentence()]
        return found._replace(warnings=warnings, time_factor=_OTHER_ENGINE * self.time_factor)


def read_machine(
    profile: Profile | None,
    power_w: float | None,
    device: str,
    threads: int | None = None,
    *,
    elsewhere: bool = False,
    sensors: System | None = None,
) -> Machine:
    """What a profile and this machine say.

    Args:
        profile: None: nothing was timed, and the bare process is guessed.
        power_w: what it draws while training, where no sensor says.
        device: that will train.
        threads: that will train; None: the profile's.
        elsewhere: the plan is for the profile's board, which is not this one.
        sensors: where power is read, if that is below another root.

    Raises:
        InputError: the profile is of another board.
    """
    system = System()
    warnings: list[str] = []
    power: Power | None = None
    if profile is None:
        memory, power = read_memory(system), _live_power(sensors or system)
    else:
        if not elsewhere:
            refuse_other_board(profile, system)
        memory = profile.memory if elsewhere else _memory_now(profile, system)  # of this board, as was made sure of
        power = profile.power
        if profile.compute.probe_error:
            timed = profile.compute.block_costs or profile.compute.gemm_flops
            how = "the profile's probes are not complete" if timed else "the profile has no probes"
            warnings.append(f"{how} ({profile.compute.probe_error})")
    compute = profile.compute if profile is not None else None
    measured = compute.runtime_bytes if compute is not None else None
    runtime_bytes = measured + COMMAND_BYTES if measured is not None else _guessed_runtime_bytes()
    cores = usable_cores() or os.cpu_count() or 1
    wanted = (compute.threads if compute is not None else None) or cores
    if threads is None and not elsewhere and wanted > cores:
        threads = cores  # a container may have fewer than the profile's
    sure = certainty(profile, system, device, threads, elsewhere=elsewhere)
    warnings += sure.warnings()
    rates = Rates(compute) if compute is not None else None
    watts = watts_of(power, compute, power_w)
    source = "--power" if power_w is not None else _named_source(power) if power is not None else None
    return Machine(
        memory=memory,
        runtime_bytes=runtime_bytes,
        runtime_measured=measured is not None,
        first_use=FirstUse.of(compute) if compute is not None else UNMEASURED,
        rates=rates,
        watts=watts,
        watts_source=source if watts is not None else None,
        threads=threads or wanted,
        warnings=warnings,
        time_factor=sure.time_factor,
        margin_bytes=int(sure.process_share * runtime_bytes),
    )


def refuse_other_board(profile: Profile, system: System | None = None) -> None:
    """Make sure that a profile is of this board.

    Raises:
        InputError: something that both know of the board differs.
    """
    system = system or System()
    here, there = identify_entry(system)[0], profile.board
    facts = [(here.module, there.module), (here.soc, there.soc), (here.arch, there.arch), (here.family, there.family)]
    differ = any(None not in pair and pair[0] != pair[1] for pair in facts)
    live, kept = read_memory(system).total_bytes, profile.memory.total_bytes
    if live is not None and kept is not None:
        differ = differ or abs(live - kept) > _SAME_MEMORY * kept
    if differ:
        raise InputError(
            f"--profile is of another board ({_named(there, kept)}; this is {_named(here, live)}): run"
            " `edgetune profile` here, or plan for that board with --elsewhere."
        )


def _named(board: Board, total_bytes: int | None) -> str:
    size = "" if total_bytes is None else f" with {format_size(total_bytes)}"
    return f"{board.name}{size}"


def _memory_now(profile: Profile, system: System) -> Memory:
    """Memory as it is now, where both know what there is in all; else as the profile found it."""
    live = read_memory(system)
    return profile.memory if None in (live.total_bytes, profile.memory.total_bytes) else live


def _live_power(system: System) -> Power | None:
    from edgetune.device.power import close_power, describe_power, find_power

    board, entry = identify_entry(system)
    source = find_power(system, board, entry)
    power = describe_power(system, source, entry) if source is not None else None
    close_power(source)
    return power


def _named_source(power: Power) -> str | None:
    """Where watts come from, in words; a published model by its own name."""
    return f"modelled: {power.model}" if power.model and not power.measured else power.source


def usable_cores() -> int | None:
    """Cores that this process may run on; None where the system does not say."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return None


def _guessed_runtime_bytes() -> int:
    """What a bare process takes: more where the installed torch brings CUDA's libraries."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return _RUNTIME_CPU_BYTES
    if "+cpu" in version:
        return _RUNTIME_CPU_BYTES
    carries_cuda = any(name.startswith("nvidia-") for name in metadata.requires("torch") or [])
    return _RUNTIME_CUDA_BYTES if carries_cuda or "+cu" in version else _RUNTIME_CPU_BYTES


def memory_cap(asked_bytes: int | None, memory: Memory) -> tuple[int | None, str | None]:
    """The cap on memory and where it comes from: as asked, else a share of what may be used now."""
    if asked_bytes is not None:
        return asked_bytes, "--memory"
    usable = usable_bytes(memory)
    if usable is None:
        return None, None
    by_group = memory.limit_room_bytes is not None and memory.limit_room_bytes == usable
    reason = f"the room that {memory.limit_source} leaves" if by_group else "available memory"
    return int(DEFAULT_SHARE * usable), f"{DEFAULT_SHARE:g} of {reason}"


def default_workers(machine: Machine, cap_bytes: int | None, device: str, spec: ViTSpec, batch_size: int) -> int:
    """None where the processor itself trains: its threads keep every core busy. A GPU is fed as memory allows."""
    if device == "cpu" or cap_bytes is None:
        return 0
    room = cap_bytes - machine.runtime_bytes
    return workers_that_fit(room, usable_cores() or 1, 3 * spec.image_size**2 * batch_size)
