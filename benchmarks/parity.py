"""Accuracy of a method beside full fine-tuning, paired by seed, each at the learning rate that suits it.

    python benchmarks/parity.py grid --workload fashion --methods full,last-2 --data runs/data
    python benchmarks/parity.py seeds --workload fashion --methods full,last-2 --data runs/data --seeds 10
    python benchmarks/parity.py table --workload fashion

`--data` holds the folders that `workloads.py` made: NAME and NAME-tune. A method is a name that `edgetune fit --method`
takes, or one of the recipe file (`{"NAME": {"method": "edgetune", "arguments": ["--flag", "value"]}}`, or a list of
such entries with a "name"). `grid` tries one grid of learning rates for every method on the tune split, and goes on by
a factor of two where the best is at an edge; `seeds` trains on all training images at the rate with the best mean,
seed by seed across the methods. Each run is a fresh process; one with a line in `results/parity.jsonl` (same workload,
split, method, arguments, rate and seed) is not repeated, so a series cut off half-way goes on. `--code FOLDER` runs
another checkout's edgetune; with `--this-commit`, only lines that its very commit made count as done.

The same seed means the same images in the same order, augmented the same way, and the same fresh classifier. Accuracy
is that of the last epoch. Times are shown only from lines made with `--quiet-machine`: nothing else ran beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import append, lines

NAME = "parity"
REFERENCE = "full"
GRID = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)
MOST_EXTENSIONS = 4  # of the grid, beyond which a rate at its edge is printed and taken as it is
RESAMPLES = 10_000
HERE = Path(__file__).resolve().parent

_COMMON = "--epochs 3 --batch-size 32 --evaluate-every 3 --workers 0"
# Random crops cost every method points in so few epochs (results/parity_augmented.jsonl has `full` with them), so
# everybody does without.
WORKLOADS = {
    "fashion": f"--model vit_nano_patch8_64 {_COMMON} --no-augment",
    "digits": f"--model vit_nano_patch8_64 {_COMMON} --no-augment",
    "w1": f"--model vit_small_patch14_dinov2 --image-size 98 {_COMMON} --no-augment",  # takes --weights
}


class Method(NamedTuple):
    """What is compared: a method of `edgetune fit` and further arguments, under a name of its own."""

    name: str
    method: str
    arguments: tuple[str, ...] = ()


class Run(NamedTuple):
    """What makes a line unique."""

    workload: str
    split: str  # "tune" or "final"
    method: str
    arguments: tuple[str, ...]
    lr: float
    seed: int


class Setting(NamedTuple):
    """Where and with what runs are made."""

    workload: str
    data: Path
    weights: Path | None
    code: Path
    scratch: Path
    quiet: bool
    this_commit: bool
    threads: int = 2


def read_methods(names: str, recipes: Path) -> list[Method]:
    """Methods by name, looked up in the recipe file first."""
    entries: dict[str, Any] = {}
    if recipes.exists():
        content = json.loads(recipes.read_text())
        entries = {entry["name"]: entry for entry in content} if isinstance(content, list) else content
    return [
        Method(name, entries[name].get("method", "edgetune"), tuple(entries[name].get("arguments", ())))
        if name in entries
        else Method(name, name)
        for name in names.split(",")
    ]


def run_of(line: dict[str, Any]) -> Run:
    """The run that made a line."""
    return Run(line["workload"], line["split"], line["fit_method"], tuple(line["arguments"]), line["lr"], line["seed"])


def recorded(workload: str) -> dict[Run, dict[str, Any]]:
    """The newest line of each run."""
    return {run_of(line): line for line in lines(NAME) if line["workload"] == workload}


def commit_of(code: Path) -> str:
    """What the checkout is at."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=code, check=False
    )
    return described.stdout.strip()


def fit_command(run: Run, data: str, weights: str | None, out: str, threads: int) -> list[str]:
    """The command line of one run."""
    return [
        *("edgetune", "fit", data, *shlex.split(WORKLOADS[run.workload])),
        *("--threads", str(threads)),
        *(("--weights", weights) if weights else ()),
        *("--method", run.method, *run.arguments),
        *("--lr", f"{run.lr:g}", "--seed", str(run.seed), "--out", out),
    ]


def ensure(run: Run, method: Method, setting: Setting) -> None:
    """Make a run and its line, unless it has one."""
    line = recorded(run.workload).get(run)
    if line and (not setting.this_commit or line["code"] == commit_of(setting.code)):
        return
    folder = run.workload if run.split == "final" else f"{run.workload}-tune"
    label = f"{run.workload}-{run.split}-{method.name}-{run.lr:g}-{run.seed}"
    out = (setting.scratch / label).resolve()
    shutil.rmtree(out, ignore_errors=True)
    data, weights = (setting.data / folder).resolve(), setting.weights
    place = str(weights.resolve()) if weights else None
    arguments = fit_command(run, str(data), place, str(out), setting.threads)
    shown = shlex.join(fit_command(run, folder, weights.name if weights else None, f"runs/{label}", setting.threads))
    print(shown, flush=True)
    commit = commit_of(setting.code)
    ended = subprocess.run(
        [sys.executable, "-m", *arguments, "--quiet"],
        check=False,
        cwd=setting.code,
        env={**os.environ, "PYTHONPATH": str(setting.code.resolve())},
    )
    written = out / "result.json"
    result: dict[str, Any] = {"stopped_by": f"exit status {ended.returncode}"}
    if written.exists():
        result = json.loads(written.read_text())
    shutil.rmtree(out, ignore_errors=True)
    diverged = run.split == "tune" and result["stopped_by"] == "nan"  # a rate like any other, only never chosen
    if not diverged and (ended.returncode or result["stopped_by"] != "epochs"):
        raise SystemExit(f"{shown} was stopped by {result['stopped_by']}; no line was written.")
    accuracy = None if diverged else result["accuracy"]["last"]
    outcome = "diverged" if accuracy is None else f"{accuracy:.4f}"
    print(f"  {outcome} in {result['time']['total_s']:.0f} s", flush=True)
    append(
        NAME,
        {
            "workload": run.workload,
            "split": run.split,
            "method": method.name,
            "fit_method": run.method,
            "arguments": list(run.arguments),
            "lr": run.lr,
            "seed": run.seed,
            "accuracy": accuracy,
            "images": result["work"]["images"],
            "train_flops": result["work"]["train_flops"],
            "epochs_s": result["time"]["epochs_s"],
            "total_s": result["time"]["total_s"],
            "measured_peak_bytes": result["memory"]["measured_peak_bytes"],
            "baseline_bytes": result["memory"]["baseline_bytes"],
            "quiet": setting.quiet,
            "code": commit,
            "command": shown,
        },
    )


def tune_means(workload: str, method: Method) -> dict[float, float]:
    """Mean accuracy on the tune split by learning rate, of the rates tried with the most seeds; NaN: one diverged."""
    found: dict[float, list[float]] = {}
    for run, line in recorded(workload).items():
        if run.split == "tune" and (run.method, run.arguments) == (method.method, method.arguments):
            found.setdefault(run.lr, []).append(math.nan if line["accuracy"] is None else line["accuracy"])
    most = max(map(len, found.values()), default=0)
    return {lr: sum(values) / most for lr, values in sorted(found.items()) if len(values) == most}


def chosen_rate(workload: str, method: Method) -> float:
    """The rate with the best mean; of equals the lowest."""
    rate = _best(tune_means(workload, method))
    if rate is None:
        raise SystemExit(f"{method.name} has no rate on {workload} yet: run `grid` first.")
    return rate


def _best(means: dict[float, float]) -> float | None:
    sound = {lr: mean for lr, mean in means.items() if not math.isnan(mean)}
    return max(sound, key=lambda lr: sound[lr]) if sound else None


def grid(methods: list[Method], setting: Setting, rates: list[float], seeds: int) -> None:
    """Try every rate with every method, and further ones while the best is at an edge."""
    for method in methods:
        wanted = rates
        for _ in range(MOST_EXTENSIONS + 1):
            for seed in range(seeds):
                for lr in wanted:
                    ensure(Run(setting.workload, "tune", method.method, method.arguments, lr, seed), method, setting)
            tried = tune_means(setting.workload, method)
            best = chosen_rate(setting.workload, method)
            edge = ""
            if min(tried) < best < max(tried):
                break
            edge = ", still at the edge of the grid"
            wanted = [best / 2 if best == min(tried) else best * 2]
        print(f"{method.name} on {setting.workload}: {best:g}{edge}", flush=True)


def run_seeds(methods: list[Method], setting: Setting, seeds: int) -> None:
    """Final runs, all methods of a seed before the next seed."""
    rates = {method: chosen_rate(setting.workload, method) for method in methods}
    for seed in range(seeds):
        for method in methods:
            run = Run(setting.workload, "final", method.method, method.arguments, rates[method], seed)
            ensure(run, method, setting)


def bootstrap_interval(differences: list[float], resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean difference, pairs drawn with replacement."""
    values = np.array(differences)
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[draws].mean(1), (2.5, 97.5))
    return float(low), float(high)


def final_lines(workload: str, method: Method) -> dict[int, dict[str, Any]]:
    """Final lines at the chosen rate, by seed; none without a rate."""
    lr = _best(tune_means(workload, method))
    wanted = ("final", method.method, method.arguments, lr)
    return {run.seed: line for run, line in recorded(workload).items() if run[1:5] == wanted}


def table(workload: str, methods: list[Method]) -> str:
    """The Markdown table, from the recorded lines."""
    reference = final_lines(workload, Method(REFERENCE, REFERENCE))
    out = [
        "| method | accuracy | seeds | learning rate | difference to `full`, points | s per epoch |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    rates, code = [], []
    for method in methods:
        tried = [
            f"{lr:g}: " + ("diverged" if math.isnan(mean) else f"{100 * mean:.2f} %")
            for lr, mean in tune_means(workload, method).items()
        ]
        if tried:
            rates.append(f"- `{method.name}`, mean on the tune split by rate: {', '.join(tried)}")
        found = final_lines(workload, method)
        if not found:
            continue
        values = [line["accuracy"] for line in found.values()]
        spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
        paired = [(line["accuracy"], reference[seed]["accuracy"]) for seed, line in found.items() if seed in reference]
        pairs = [100 * (accuracy - other) for accuracy, other in paired]
        difference = ""
        if pairs and method[1:] != (REFERENCE, ()):  # a recipe may be `full` with arguments
            low, high = bootstrap_interval(pairs)
            difference = f"{statistics.mean(pairs):+.2f} [{low:+.2f}, {high:+.2f}], {len(pairs)} pairs"
        times = [statistics.mean(line["epochs_s"]) for line in found.values() if line["quiet"]]
        seconds = f"{statistics.median(times):.1f}" if times else "not measured"
        out.append(
            f"| `{method.name}` | {100 * statistics.mean(values):.2f} %{spread} | {len(values)}"
            f" | {chosen_rate(workload, method):g} | {difference} | {seconds} |"
        )
        commits = " and ".join(sorted({line["code"] for line in found.values()}))
        example = found[min(found)]["command"]
        code.append(f"- `{method.name}` ({commits}): `{example}`")
    note = f"Accuracy: mean ± standard deviation. Intervals: 95 %, {RESAMPLES:,} bootstrap resamples of the pairs."
    return "\n".join([*out, "", note, "", *rates, "", *code])


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--workload", choices=tuple(WORKLOADS), required=True)
    shared.add_argument("--methods", default=REFERENCE, help="names, comma-separated")
    shared.add_argument("--recipes", type=Path, default=HERE / "recipes.json")
    running = argparse.ArgumentParser(add_help=False)
    running.add_argument("--data", type=Path, default=Path("runs/data"), help="holds WORKLOAD and WORKLOAD-tune")
    running.add_argument("--weights", type=Path, help="default: found by the model's name")
    running.add_argument("--code", type=Path, default=HERE.parent, help="the checkout whose edgetune runs")
    running.add_argument("--scratch", type=Path, default=Path("runs/parity"), help="run folders; each is removed")
    running.add_argument("--quiet-machine", action="store_true", help="nothing else runs: the times may be shown")
    running.add_argument("--threads", type=int, default=2, help="of each run; with 1, two series may run side by side")
    running.add_argument("--this-commit", action="store_true", help="repeat what another commit's code has run")
    commands = parser.add_subparsers(dest="command", required=True)
    trying = commands.add_parser("grid", parents=[shared, running])
    trying.add_argument("--rates", default=",".join(f"{lr:g}" for lr in GRID))
    trying.add_argument("--seeds", type=int, default=2)
    final = commands.add_parser("seeds", parents=[shared, running])
    final.add_argument("--seeds", type=int, default=10)
    commands.add_parser("table", parents=[shared])
    options = parser.parse_args()
    methods = read_methods(options.methods, options.recipes)
    if options.command == "table":
        print(table(options.workload, methods))
        return
    setting = Setting(
        workload=options.workload,
        data=options.data,
        weights=options.weights,
        code=options.code.resolve(),
        scratch=options.scratch,
        quiet=options.quiet_machine,
        this_commit=options.this_commit,
        threads=options.threads,
    )
    if options.command == "grid":
        grid(methods, setting, [float(rate) for rate in options.rates.split(",")], options.seeds)
    else:
        run_seeds(methods, setting, options.seeds)


if __name__ == "__main__":
    main()
