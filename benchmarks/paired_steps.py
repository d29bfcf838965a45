"""How long a step of edgetune takes beside a step of eager PyTorch, on a machine whose speed does not hold still.

    python benchmarks/paired_steps.py run --model vit_tiny_patch16_224 --batch-size 8
    python benchmarks/paired_steps.py run --model vit_base_patch16_224 --batch-size 4 --rounds 15
    python benchmarks/paired_steps.py table

Each trainer has a process of its own, as in `edgetune bench`, with its own allocator and threads; but they take turns
step by step, a fraction of a second apart, each while the others sleep. A host that is slow for a minute is then slow
for all of them, and what is told is the ratio within each round. Nothing but steps is timed: no images are read, no
features cached. The trainers are `eager-full` and entries of recipes.json (benchmarks/steps.py). A run adds one line to
`results/paired_steps.jsonl`; nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import append, lines
from steps import plan_of, prepare, step_of

from edgetune.model.registry import find_spec

NAME = "paired_steps"
METHODS = "eager-full,lean-full,edgetune"  # the first is what the others are compared with
WARM_UP = 3  # steps of each that are not counted
RESAMPLES = 2000
_PAUSE_S = 0.05  # between two steps: threads of the last one may wait for work a moment longer


def worker(name: str, scratch: Path, settings: dict[str, Any]) -> None:
    """Take a step whenever a line comes in, and say how long it took."""
    step = step_of(plan_of(name, scratch, **settings), scratch)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        print(time.perf_counter() - started, flush=True)


def take_turns(names: list[str], scratch: Path, settings: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round's step of each trainer."""
    command = [sys.executable, __file__, "worker", str(scratch), json.dumps(settings)]
    workers = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in names
    }
    found: dict[str, list[float]] = {name: [] for name in names}
    try:
        for number in range(WARM_UP + rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                process = workers[name]
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("step\n")
                process.stdin.flush()
                seconds = float(process.stdout.readline())
                if number >= WARM_UP:
                    found[name].append(seconds)
                time.sleep(_PAUSE_S)
    finally:
        for process in workers.values():
            process.kill()
            process.wait()
    return found


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % of bootstrap medians."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One line of the results."""
    size = options.image_size or find_spec(options.model).image_size
    settings = {"model": options.model, "image_size": size, "batch_size": options.batch_size}
    names = options.methods.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), options.model, size)
        found = take_turns(names, Path(scratch), settings | {"threads": options.threads}, options.rounds)
    for name, seconds in found.items():
        print(name, f"{1000 * statistics.median(seconds):.0f} ms", flush=True)
    return settings | {
        "threads": options.threads,
        "steps_s": {name: [round(value, 5) for value in seconds] for name, seconds in found.items()},
    }


def table() -> None:
    """Markdown: the last line of each model."""
    records = {(line["model"], line["image_size"], line["batch_size"]): line for line in lines(NAME)}
    print("| model | trainer | rounds | ms a step, median (lowest) | against the first, median of rounds [95 %] |")
    print("|---|---|---:|---:|---:|")
    for (model, size, batch), line in records.items():
        first = next(iter(line["steps_s"].values()))
        for name, seconds in line["steps_s"].items():
            ratios = [mine / theirs for mine, theirs in zip(seconds, first, strict=True)]
            low, high = interval(ratios)
            print(
                f"| {model}, {size} px, batch {batch} | `{name}` | {len(seconds)} |"
                f" {1000 * statistics.median(seconds):.0f} ({1000 * min(seconds):.0f}) |"
                f" {statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}] |"
            )


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--model", default="vit_tiny_patch16_224")
    running.add_argument("--image-size", type=int)
    running.add_argument("--batch-size", type=int, default=8)
    running.add_argument("--methods", default=METHODS)
    running.add_argument("--rounds", type=int, default=40)
    running.add_argument("--threads", type=int, default=2)
    working = commands.add_parser("worker", help="what `run` starts")
    working.add_argument("scratch", type=Path)
    working.add_argument("settings", type=json.loads)
    working.add_argument("name")
    commands.add_parser("table")
    options = parser.parse_args()
    if options.command == "run":
        append(NAME, run(options))
    elif options.command == "worker":
        worker(options.name, options.scratch, options.settings)
    else:
        table()


if __name__ == "__main__":
    main()
