"""The probes' own process: `python -m edgetune.profile.child ORDER`, one JSON line per finding on standard output.

Whatever a broken build does (an illegal instruction, a missing kernel, a runaway product), it does here and not to the
profiler.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from edgetune.allocator import keep_malloc_lean, keep_mkl_lean
from edgetune.measure.baseline import warm_up_torch
from edgetune.measure.memory import PeakMeter
from edgetune.profile.probes import ONCE, PROBES, ROUNDS, TIGHT, Bench
from edgetune.profile.run import ProbeOrder

if TYPE_CHECKING:
    from edgetune.device.energy import Window


def main(argument: str) -> None:
    """Run every registered probe there is time for."""
    order = msgspec.json.decode(argument, type=ProbeOrder)
    if order.tight:  # before torch is loaded
        keep_malloc_lean()
        keep_mkl_lean()
    began_s = time.monotonic()
    try:
        import torch
    except ImportError as error:
        reason = "torch is not installed: run `pip install 'edgetune[torch]'`"
        say({"compute": {"probe_error": reason if error.name == "torch" else f"torch can't be imported ({error})"}})
        return
    import_s = time.monotonic() - began_s
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device = _working_device()
    meter = PeakMeter.start(lambda: warm_up_torch(cores, device))
    for sentence in meter.warnings:
        say({"warning": sentence})
    say(
        {
            "compute": {
                "engine": "torch",
                "engine_version": str(torch.__version__),
                "device": device,
                "threads": torch.get_num_threads(),
                "cores": cores,
                "runtime_bytes": meter.baseline_bytes,
                "import_s": import_s,
            }
        }
    )
    say({"memory": gpu_memory(device)})
    from edgetune.device.energy import EnergyMeter
    from edgetune.device.system import System

    system = System()
    source = _power_source(system, order) if order.with_energy else None
    with EnergyMeter(source, warn=lambda sentence: say({"warning": sentence})) as energy, energy.window() as window:
        deadline_s = time.monotonic() + order.budget_s
        bench = Bench(device, order.quick, deadline_s, energy if source is not None and source.measured else None)
        for number in range(1 if order.quick else ROUNDS):
            bench.again = number > 0
            for (operation, lever), probe in PROBES.items():
                if ((operation, lever) in TIGHT) != order.tight:
                    continue
                if bench.again and (bench.late() or (operation, lever) in ONCE):
                    continue
                if bench.late():
                    say({"warning": f"no time was left to probe {operation} ({lever})."})
                    continue
                for line in probe(bench):
                    say(line)
                say_warnings(system)
        say({"compute": {"busy_w": mean_watts(window)}})
    say_warnings(system)


def say(line: dict[str, Any]) -> None:
    """Tell the parent, at once: a later probe may crash."""
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def mean_watts(window: Window) -> float | None:
    """What was drawn while the probes ran; None where the source said nothing, or nothing yet."""
    joules, seconds = window.joules, window.seconds
    return joules / seconds if joules and seconds > 0 else None


def say_warnings(system: Any) -> None:
    """Tell the parent what reading the sensor brought up since the last time; a crash loses one probe's."""
    while system.warnings:
        say({"warning": system.warnings.pop(0)})


def gpu_memory(device: str) -> dict[str, int]:
    """Bytes of GPU memory in all, and free once a process has its context; nothing where CUDA doesn't work."""
    if device != "cuda":
        return {}
    import torch

    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return {"cuda_total_bytes": total_bytes, "cuda_free_bytes": free_bytes}


def _working_device() -> str:
    """CUDA where a kernel really runs, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    try:
        square = torch.ones(64, 64, device="cuda")
        (square @ square).sum().item()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        say({"warning": f"CUDA is there but runs no kernel of the installed torch ({reason}): probed on the CPU."})
        return "cpu"
    return "cuda"


def _power_source(system: Any, order: ProbeOrder) -> Any:
    from edgetune.device.board import identify_entry
    from edgetune.device.power import find_power

    source = find_power(system, *identify_entry(system), order.power_w)
    say_warnings(system)
    return source


if __name__ == "__main__":
    main(sys.argv[1])
