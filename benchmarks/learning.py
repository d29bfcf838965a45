"""Does the planner's objective rank plans as accuracy does? Random plans, trained and ranked.

    python benchmarks/learning.py run --workload fashion --data runs/data --first 20 --count 50 --lr 1e-3
    python benchmarks/learning.py table

A plan draws how many trailing blocks train, how many at a time, the share of tokens, epochs and the bits of saved
tensors; the rest is the recipe of `edgetune`, with one rate for all plans (`--lr`) or each with its own default. What
is compared is the objective that the search maximises (`edgetune.plan.search.learning`), computed from the plan
before it runs, and the last epoch's accuracy. One line per plan goes to `results/learning.jsonl`; a plan that has a
line is not repeated. Numbers below `DESIGN` may be looked at while the objective is designed; the table's Spearman
correlations are of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import append, lines
from parity import WORKLOADS

from edgetune import schema
from edgetune.plan.job import job_of
from edgetune.plan.search import learning
from edgetune.schema import Plan

NAME = "learning"
DESIGN = 20
MOST_EPOCHS = 4
FIRST_RATE = 1e-3  # of lines that name none: the recipe's default then, whatever the plan
DEPTHS = {"fashion": 6, "digits": 6, "w1": 12}


def draw(workload: str, number: int) -> tuple[str, list[str], int]:
    """Method, levers and epochs of a plan."""
    rng = random.Random(f"learning {workload} {number}")
    trained = rng.randint(0, DEPTHS[workload])
    epochs = rng.randint(1, MOST_EPOCHS)
    if not trained:
        return "head", ["trainer=lean", "feature_cache=fp16", "frozen_weights=disk"], epochs
    k = trained if rng.random() < 0.5 else rng.randint(1, trained)
    tokens = rng.choice((1.0, 1.0, 0.85, 0.7, 0.5))
    levers = [f"trained_blocks={trained}", f"k={k}", f"token_min={tokens}", f"token_max={tokens}"]
    levers += ["saved_precision=int4"] if rng.random() < 0.25 else []
    return "edgetune", levers, epochs


def measure(
    workload: str, number: int, data: Path, weights: Path | None, threads: int, rate: float | None
) -> dict[str, Any]:
    """Train one plan."""
    method, levers, epochs = draw(workload, number)
    words = WORKLOADS[workload].replace("--epochs 3", f"--epochs {epochs}")
    words = words.replace("--evaluate-every 3", f"--evaluate-every {epochs}")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, "-m", "edgetune", "fit", str(data / workload), *words.split(), "--method", method]
        command += [word for lever in levers for word in ("--lever", lever)]
        command += [] if weights is None else ["--weights", str(weights)]
        command += [] if rate is None else ["--lr", f"{rate:g}"]
        command += ["--threads", str(threads), "--seed", str(number), "--quiet", "--out", str(out)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        plan = schema.load(out / "plan.json", Plan)
        result = json.loads((out / "result.json").read_text())
    expected = learning(job_of(plan), epochs, most_trained=DEPTHS[workload], wanted_epochs=MOST_EPOCHS)
    return {
        "method": method,
        "levers": levers,
        "epochs": epochs,
        "lr": rate,
        "learning": expected,
        "accuracy": result["accuracy"]["last"],
        "epochs_s": result["time"]["epochs_s"],
    }


def series() -> dict[tuple[str, float | None], dict[int, dict[str, Any]]]:
    """Lines by workload and rate, then by number."""
    found: dict[tuple[str, float | None], dict[int, dict[str, Any]]] = {}
    for line in lines(NAME):
        found.setdefault((line["workload"], line.get("lr", FIRST_RATE)), {})[line["number"]] = line
    return found


def run(
    workload: str, data: Path, weights: Path | None, numbers: range, threads: int, rate: float | None = None
) -> None:
    """Train the plans that have no line yet."""
    done = series().get((workload, rate), {})
    for number in (number for number in numbers if number not in done):
        record = measure(workload, number, data, weights, threads, rate)
        append(NAME, {"workload": workload, "number": number, **record})
        print(f"{number:3} {record['learning']:.3f} {record['accuracy']:.4f} {record['levers']}", flush=True)


def ranks(values: list[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Ranks from 0; equals share their mean rank."""
    found = np.array(values)
    return np.array([(found < value).sum() + ((found == value).sum() - 1) / 2 for value in found])


def spearman(left: list[float], right: list[float]) -> float:
    """Rank correlation."""
    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def table() -> None:
    """Markdown: a row for each workload and rate."""
    print("| workload | rate | plans | Spearman | of the plans seen while designing |\n|---|---:|---:|---:|---:|")
    for (workload, rate), records in series().items():
        shown = []
        for unseen in (True, False):
            found = [line for number, line in records.items() if (number >= DESIGN) is unseen]
            pairs = [line["learning"] for line in found], [line["accuracy"] for line in found]
            shown.append((len(found), spearman(*pairs) if len(found) > 2 else None))
        (count, value), (_, seen) = shown
        rates = "each its default" if rate is None else f"{rate:g}"
        print(f"| {workload} | {rates} | {count} | {_text(value)} | {_text(seen)} |")


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--workload", choices=tuple(DEPTHS), required=True)
    running.add_argument("--data", type=Path, default=Path("runs/data"), help="holds the folder WORKLOAD")
    running.add_argument("--weights", type=Path)
    running.add_argument("--first", type=int, default=0, help="the number to begin with")
    running.add_argument("--count", type=int, default=50, help="the number to end before")
    running.add_argument("--threads", type=int, default=2)
    running.add_argument("--lr", type=float, help="of every plan; default: each has its own")
    commands.add_parser("table")
    options = parser.parse_args()
    if options.command == "run":
        numbers = range(options.first, options.count)
        run(options.workload, options.data.resolve(), options.weights, numbers, options.threads, options.lr)
    else:
        table()


if __name__ == "__main__":
    main()
