"""Accuracy at a budget: what each method reaches with 10, 20, 40 and 80 % of the time that full fine-tuning takes.

    python benchmarks/budget_accuracy.py run --workload fashion --data runs/data --seeds 3
    python benchmarks/budget_accuracy.py table --workload fashion

The reference is `full` for three epochs, uncapped, in this trainer's autograd; its whole time, start and evaluation
included, is the unit. Every method then gets `--time` for its share of that and more epochs than it can use, at the
rate that `parity.py grid` found best for it in three epochs (its default where no grid was run). No profile is given,
so nothing is refused beforehand: the run reckons by its own pace what the cap has room for, its schedule ends there,
and the governor ends it inside. What a cap does not even leave room to begin is a result too. Runs validate on 50
images of each class, as somebody in a hurry would; the accuracy that counts is measured afterwards on all validation
images, outside of the time. Time stands for joules, which would be this times the watts of a machine that is busy all
the time; nothing else may run beside it. One line per run goes to `results/budget_accuracy.jsonl`; a run that has a
line is not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import append, lines
from parity import WORKLOADS, Method, chosen_rate, read_methods, tune_means

NAME = "budget_accuracy"
METHODS = ("edgetune", "edgetune-4", "full", "last-4", "lora", "alast")
SHARES = (0.1, 0.2, 0.4, 0.8)
REFERENCE = "full, three epochs"
RECIPES = Path(__file__).resolve().parent / "recipes.json"
MOST_EPOCHS = 40
VAL_PER_CLASS = 50


def few_to_validate(data: Path, folder: Path) -> Path:
    """The data set with the first validation images of each class alone; nothing is copied."""
    folder.mkdir()
    (folder / "train").symlink_to(data / "train")
    for images in sorted((data / "val").iterdir()):
        (folder / "val" / images.name).mkdir(parents=True)
        for image in sorted(images.iterdir())[:VAL_PER_CLASS]:
            (folder / "val" / images.name / image.name).symlink_to(image)
    return folder


def fit(workload: str, data: Path, weights: Path | None, words: list[str], threads: int) -> dict[str, Any]:
    """One run: its accuracy on all validation images, its time, how it ended."""
    with tempfile.TemporaryDirectory() as scratch:
        out, few = Path(scratch) / "run", few_to_validate(data / workload, Path(scratch) / "data")
        command = [sys.executable, "-m", "edgetune", "fit", str(few), *WORKLOADS[workload].split()]
        command += [] if weights is None else ["--weights", str(weights)]
        command += [*words, "--threads", str(threads), "--quiet", "--out", str(out)]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
        if not (out / "result.json").exists():
            raise SystemExit(f"{' '.join(words)}: exit {ended.returncode}: {ended.stderr.strip()[-400:]}")
        result = json.loads((out / "result.json").read_text())
        found: dict[str, Any] = {}
        if result["accuracy"]["last"] is not None:  # each is evaluated once, at its end: its best is its last
            command = [sys.executable, "-m", "edgetune", "evaluate", str(out), str(data / workload), "--json"]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        "accuracy": found.get("accuracy"),
        "val_images": found.get("images"),
        "run_accuracy": result["accuracy"]["last"],
        "total_s": result["time"]["total_s"],
        "stopped_by": result["stopped_by"],
        "images": result["work"]["images"],
    }


def run(options: argparse.Namespace) -> None:
    """The reference, then every method at every share, seed by seed."""
    workload, data, weights = options.workload, options.data.resolve(), options.weights

    def ensure(method: str, share: float, seed: int, words: list[str]) -> dict[str, Any]:
        for line in lines(NAME):
            if (line["workload"], line["method"], line["share"], line["seed"]) == (workload, method, share, seed):
                return dict(line)
        found: dict[str, Any] = fit(workload, data, weights, [*words, "--seed", str(seed)], options.threads)
        rate = float(words[words.index("--lr") + 1]) if "--lr" in words else None
        append(NAME, {"workload": workload, "method": method, "share": share, "seed": seed, "lr": rate, **found})
        print(f"{workload} {method} {share:g} seed {seed}: {found['accuracy']}, {found['total_s']:.0f} s", flush=True)
        return found

    methods = read_methods(",".join(METHODS), RECIPES)
    said = {
        method.name: [*("--method", method.method), *method.arguments, *_rate(workload, method)] for method in methods
    }
    for seed in range(options.seeds):
        # the last of a flag counts
        whole_s = ensure(REFERENCE, 1.0, seed, [*said["full"], "--evaluate-every", "3"])["total_s"]
        for share in SHARES:
            for method, words in said.items():
                # more epochs than fit, and one evaluation, at the end
                words = [*words, "--epochs", str(MOST_EPOCHS), "--evaluate-every", str(MOST_EPOCHS)]
                ensure(method, share, seed, [*words, "--time", f"{share * whole_s:.1f}s"])


def _rate(workload: str, method: Method) -> list[str]:
    return ["--lr", f"{chosen_rate(workload, method):g}"] if tune_means(workload, method) else []


def table(workload: str) -> None:
    """Markdown: accuracy of each method at each share, and the images that it saw."""
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for line in lines(NAME):
        if line["workload"] == workload:
            found.setdefault((line["method"], line["share"]), []).append(line)
    whole = found.get((REFERENCE, 1.0), [])
    if not whole:
        raise SystemExit(f"nothing recorded of {workload}.")
    print(f"`{REFERENCE}`: {_accuracy(whole)} in {statistics.mean(line['total_s'] for line in whole):.0f} s\n")
    print("| method | rate | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |")
    print("|---|---:|" + "---:|" * len(SHARES))
    for method in METHODS:
        cells = [found.get((method, share), []) for share in SHARES]
        rate = next(("default" if line["lr"] is None else f"{line['lr']:g}" for cell in cells for line in cell), "")
        shown = (f"{_accuracy(cell)}; {_images(cell)}" if cell else "" for cell in cells)
        print(f"| `{method}` | {rate} | " + " | ".join(shown) + " |")
    print("\nMean (lowest to highest) of last accuracies; thousands of images seen.")


def _accuracy(cell: list[dict[str, Any]]) -> str:
    """Of the seeds that were evaluated; a cap may end a run before it has begun."""
    values = [100 * line["accuracy"] for line in cell if line["accuracy"] is not None]
    unknown = f" and {len(cell) - len(values)} not begun" if len(values) < len(cell) else ""
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f}){unknown}" if values else "not begun"


def _images(cell: list[dict[str, Any]]) -> str:
    return f"{statistics.mean(line['images'] for line in cell) / 1000:.1f}k"


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--workload", choices=tuple(WORKLOADS), required=True)
    running.add_argument("--data", type=Path, default=Path("runs/data"), help="holds the folder WORKLOAD")
    running.add_argument("--weights", type=Path)
    running.add_argument("--seeds", type=int, default=3)
    running.add_argument("--threads", type=int, default=2)
    showing = commands.add_parser("table")
    showing.add_argument("--workload", choices=tuple(WORKLOADS), required=True)
    options = parser.parse_args()
    if options.command == "run":
        run(options)
    else:
        table(options.workload)


if __name__ == "__main__":
    main()
