"""Resident memory of the lean trainer over a long run: it should not grow.

    python benchmarks/flat_memory.py run --data PATH/TO/photos --steps 2000
    python benchmarks/flat_memory.py table

Steps of method `edgetune` and of a lean `full`, with the bundled model, in one process each; resident memory (VmRSS) is
read after every step from the fiftieth on. A line holds the growth from the fiftieth step to the last, and the slope of
the line of least squares through all readings.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import append, lines

NAME = "flat_memory"
SETTLED = 50  # steps before the first reading
KINDS = {
    "edgetune": ("edgetune", ()),
    "lean full": ("full", ("trainer=lean", "saved_precision=int8", "optimizer_state=factored")),
}


def measure(kind: str, data: Path, steps: int, batch_size: int) -> None:
    """One run in this process; adds its line."""
    import numpy as np

    from edgetune.allocator import settle_allocators
    from edgetune.measure.memory import PeakMeter
    from edgetune.plan import make_plan
    from edgetune.train import torch_engine
    from edgetune.train.fit import _loaders
    from edgetune.train.folder import RunFolder
    from edgetune.train.lean.start import start_engine

    method, levers = KINDS[kind]
    plan = make_plan(
        data, model="vit_nano_patch8_64", method=method, levers=levers, batch_size=batch_size, threads=2, workers=0
    )
    settle_allocators(plan)
    meter = PeakMeter.start(lambda: torch_engine.start(plan))
    resident: list[int] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        engine, train, _ = start_engine(plan, folder, *_loaders(plan), resume=False)
        done, epoch = 0, 0
        while done < steps:
            for batch in train.epoch(epoch):
                engine.train_step(batch, 1e-4, plan.micro_batch_size)
                done += 1
                if done >= SETTLED:
                    resident.append(meter.current_bytes() or 0)
                if done == steps:
                    break
            epoch += 1
        train.close()
    slope = float(np.polyfit(np.arange(len(resident)), resident, 1)[0])
    append(
        NAME,
        {
            "kind": kind,
            "steps": steps,
            "batch_size": batch_size,
            "baseline_bytes": meter.baseline_bytes,
            "first_bytes": resident[0],
            "last_bytes": resident[-1],
            "most_bytes": max(resident),
            "bytes_per_step": slope,
        },
    )


def table() -> str:
    """The recorded runs as Markdown."""
    out = [
        "| run | steps | resident at step 50 | at the end | growth | slope |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in lines(NAME):
        first, last = line["first_bytes"], line["last_bytes"]
        slope = line["bytes_per_step"] / 1024
        out.append(
            f"| {line['kind']}, batch {line['batch_size']} | {line['steps']} | {first / 2**20:.1f} MiB |"
            f" {last / 2**20:.1f} MiB | {(last - first) / first:+.2%} | {slope:+.3f} KiB a step |"
        )
    return "\n".join(out)


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--data", type=Path, required=True)
    running.add_argument("--steps", type=int, default=2000)
    running.add_argument("--batch-size", type=int, default=8)
    running.add_argument("--kind", choices=tuple(KINDS), help="one of them, in this process")
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(table())
    elif arguments.kind:
        measure(arguments.kind, arguments.data, arguments.steps, arguments.batch_size)
    else:
        for kind in KINDS:
            again = ["run", "--data", str(arguments.data), "--steps", str(arguments.steps)]
            again += ["--batch-size", str(arguments.batch_size), "--kind", kind]
            subprocess.run([sys.executable, __file__, *again], check=True)


if __name__ == "__main__":
    main()
