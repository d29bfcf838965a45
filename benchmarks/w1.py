"""Workload W1: a real ViT-S/14 on CIFAR-10 photos, every method through the command line a user has.

    python benchmarks/w1.py prepare --cifar PATH/TO/cifar10 --data runs/w1/data
    python benchmarks/w1.py run --data runs/w1/data --weights PATH/TO/vit_small_patch14_dinov2.saliency.safetensors
    python benchmarks/w1.py table

Ten classes, 250 training images a class drawn with seed 0, the first 200 validation images a class, 98 px, batch 32,
three epochs, two threads, no workers; `workloads.py` draws the images. Each run is a fresh process on an otherwise idle
machine; runs that have a line in `results/w1.jsonl` for the same seed are not repeated, so a series cut off half-way
goes on. `table` prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import append, lines
from workloads import prepare_w1

NAME = "w1"
METHODS = ("full", "alast", "last-4", "lora", "head", "edgetune")


def command(data: str, weights: str, method: str, seed: int, out: str) -> list[str]:
    """The command line of one run."""
    return shlex.split(
        f"edgetune fit {data} --model vit_small_patch14_dinov2 --weights {weights} --image-size 98 --batch-size 32"
        f" --epochs 3 --evaluate-every 3 --threads 2 --workers 0 --method {method} --seed {seed} --out {out}"
    )


def run(data: Path, weights: Path, methods: list[str], seeds: list[int], runs: Path) -> None:
    """Run what has no line yet, method by method within a seed."""
    done = {(line["method"], line["seed"]) for line in lines(NAME)}
    for seed in seeds:
        for method in methods:
            if (method, seed) in done:
                continue
            out = runs / f"{method}-{seed}"
            shutil.rmtree(out, ignore_errors=True)
            arguments = command(str(data), str(weights), method, seed, str(out))
            print(shlex.join(arguments), flush=True)
            subprocess.run([sys.executable, "-m", *arguments], check=True)
            shown = command("W1", weights.name, method, seed, f"runs/w1/{method}-{seed}")
            result = json.loads((out / "result.json").read_text())
            plan = json.loads((out / "plan.json").read_text())
            plan.pop("data")  # names folders of this machine, as does the next
            plan["weights"] = weights.name
            append(
                NAME,
                {"method": method, "seed": seed, "command": shlex.join(shown), "result": result, "plan": plan},
            )


def row(method: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over seeds."""
    results = [record["result"] for record in records]

    def median(values: list[float]) -> float:
        return statistics.median(values)

    return {
        "method": method,
        "seeds": len(records),
        "accuracy": median([result["accuracy"]["last"] for result in results]),
        "peak": median([r["memory"]["measured_peak_bytes"] - r["memory"]["baseline_bytes"] for r in results]),
        "predicted": median(
            [
                record["plan"]["predicted"]["peak_memory_bytes"] - record["plan"]["predicted"]["memory"]["runtime"]
                for record in records
            ]
        ),
        "baseline": median([result["memory"]["baseline_bytes"] for result in results]),
        "epoch_s": median([statistics.mean(result["time"]["epochs_s"]) for result in results]),
        "gflops": median([result["work"]["train_flops"] / result["work"]["images"] / 1e9 for result in results]),
        "command": records[-1]["command"],
    }


def table() -> str:
    """The Markdown table, from the recorded lines."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for line in lines(NAME):
        by_method.setdefault(line["method"], []).append(line)
    rows = [row(method, by_method[method]) for method in METHODS if method in by_method]
    full = next((entry for entry in rows if entry["method"] == "full"), None)
    out = [
        "| method | accuracy | peak above baseline | predicted | s per epoch | GFLOP per image | bare process |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in rows:
        peak, seconds = f"{entry['peak'] / 2**20:.0f} MiB", f"{entry['epoch_s']:.1f}"
        if full and entry is not full:
            peak += f" ({full['peak'] / entry['peak']:.1f}x less)"
            seconds += f" ({full['epoch_s'] / entry['epoch_s']:.2f}x faster)"
        out.append(
            f"| `{entry['method']}` | {entry['accuracy']:.1%} | {peak} | {entry['predicted'] / 2**20:.0f} MiB"
            f" | {seconds} | {entry['gflops']:.2f} | {entry['baseline'] / 2**20:.0f} MiB |"
        )
    out += ["", *(f"- `{entry['method']}`: `{entry['command']}`" for entry in rows)]
    return "\n".join(out)


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare")
    preparing.add_argument("--cifar", type=Path, required=True)
    preparing.add_argument("--data", type=Path, required=True)
    running = commands.add_parser("run")
    running.add_argument("--data", type=Path, required=True)
    running.add_argument("--weights", type=Path, required=True)
    running.add_argument("--methods", default=",".join(METHODS))
    running.add_argument("--seeds", default="0")
    running.add_argument("--runs", type=Path, default=Path("runs/w1"))
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare_w1(arguments.cifar, arguments.data)
    elif arguments.command == "run":
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
        run(arguments.data, arguments.weights, arguments.methods.split(","), seeds, arguments.runs)
    else:
        print(table())


if __name__ == "__main__":
    main()
