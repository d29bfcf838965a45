"""Energy and time caps that hold: random runs on a virtual board whose true joules are known.

    python benchmarks/budgets.py run --first 50 --count 100
    python benchmarks/budgets.py table --first 50

Each run draws a method, an image size, a batch and a cap on joules or on seconds, and asks for so many epochs that the
uncapped plan would cost several times the cap. `fit` reads the board's sensor as it would read a Jetson's
(`tests/virtual_board`); what it really spent is the board's own integral. The processor's use is real, so other work on
the machine slows the run down, which a cap has to survive. Joules are held against the cap twice: as `fit` counted
them, and as the board drew them from the call to its return. One line per run goes to `results/budgets.jsonl`; a number
that has a line is not repeated. Below 50 are runs of a commit whose joules began with the first batch.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import msgspec
from machine import append, lines
from workloads import prepare_synthetic

from edgetune.device.system import System
from edgetune.plan import make_plan
from edgetune.train.fit import exit_code, fit
from tests.virtual_board import virtual_board

NAME = "budgets"
MODEL = "vit_nano_patch8_64"
METHODS = ("edgetune", "edgetune", "full", "last-2", "lora", "alast", "head")


def measure(number: int, scratch: Path) -> dict[str, Any]:
    """One run."""
    rng = random.Random(f"budgets {number}")
    method, size = rng.choice(METHODS), rng.choice((32, 48, 64))
    batch, images = rng.choice((4, 8, 16, 32)), rng.choice((64, 160, 320))
    kind, cap = rng.choice(("energy_j", "time_s")), rng.uniform(12, 40)
    prepare_synthetic(scratch / "data", train=images, val=32, side=size * 5 // 4)
    plan = make_plan(
        scratch / "data",
        model=MODEL,
        method=method,
        image_size=size,
        batch_size=batch,
        epochs=2000,
        evaluate_every=rng.choice((1, 2, 5)),
        threads=1,
        workers=0,
        seed=number,
    )
    (scratch / "board").mkdir()
    with virtual_board(scratch / "board") as board:
        # a board of 8 W at full load: as many joules as it would draw in that time
        limit = 8 * cap if kind == "energy_j" else cap
        plan = msgspec.structs.replace(plan, caps=msgspec.structs.replace(plan.caps, **{kind: limit}))
        began = time.monotonic()
        result = fit(plan, scratch / "run", quiet=True, system=System(board.root), started=began)
        ended = time.monotonic()
        truth_j = board.true_joules(began, ended)
    spent = result.energy.total_j if kind == "energy_j" else result.time.total_s
    return {
        "method": method,
        "image_size": size,
        "batch_size": batch,
        "images": images,
        "kind": kind,
        "limit": limit,
        "spent": spent,
        "truth_j": truth_j,
        "wall_s": ended - began,
        "stopped_by": result.stopped_by,
        "exit": exit_code(result),
        "steps": result.work.images // batch,
        "evaluated": result.accuracy.last is not None,
        "checkpoint": (scratch / "run" / "best.safetensors").exists(),
    }


def run(numbers: range) -> None:
    """Make the runs that have no line yet."""
    done = {line["number"] for line in lines(NAME)}
    for number in (number for number in numbers if number not in done):
        with tempfile.TemporaryDirectory() as scratch:
            record = measure(number, Path(scratch))
        append(NAME, {"number": number, **record})
        share = (record["spent"] or 0) / record["limit"]
        print(f"{number:3} {record['method']:9} {record['kind']}: {share:.1%} of the cap", flush=True)


def table(first: int) -> None:
    """Markdown: energy as `fit` counted it and as the board drew it, and time."""
    records = list({line["number"]: line for line in lines(NAME) if line["number"] >= first}.values())
    print("| cap on | runs | of the cap: lowest | median | highest | 90 to 100 % | ended with a checkpoint |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for kind, spent, name in (
        ("energy_j", "spent", "energy, as `fit` counted it"),
        ("energy_j", "truth_j", "the same, as the board drew it"),
        ("time_s", "spent", "time"),
    ):
        found = [line for line in records if line["kind"] == kind and line[spent] is not None]
        if not found:
            continue
        shares = sorted(line[spent] / line["limit"] for line in found)
        good = sum(0.9 <= share <= 1 for share in shares)
        kept = sum(line["checkpoint"] and line["evaluated"] for line in found)
        print(
            f"| {name} | {len(found)} | {shares[0]:.1%} | {statistics.median(shares):.1%} | {shares[-1]:.1%}"
            f" | {good} | {kept} |"
        )
    print()
    for line in records:
        share = (line["spent"] or 0) / line["limit"]
        if not 0.9 <= share <= 1:
            print(f"- {line['number']}: {line['method']}, {line['kind']} {line['limit']:.0f}: {share:.1%}")


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--count", type=int, default=100, help="the number to end before")
    showing = commands.add_parser("table")
    for command in (running, showing):
        command.add_argument("--first", type=int, default=50, help="the number to begin with")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(range(arguments.first, arguments.count))
    else:
        table(arguments.first)


if __name__ == "__main__":
    main()
