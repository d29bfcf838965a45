"""What a step of edgetune takes beside a step of eager PyTorch, on a machine whose speed does not hold still.

    python benchmarks/paired_steps.py run --model vit_tiny_patch16_224 --batch-size 8
    python benchmarks/paired_steps.py run --model vit_tiny_patch16_224 --batch-size 8 --recipe benchmarks/levers.json
    python benchmarks/paired_steps.py table
    python benchmarks/paired_steps.py table --recipe benchmarks/levers.json

Each trainer has a process of its own, as in `edgetune bench`, with its own allocator and threads; but they take turns
step by step, a fraction of a second apart, each while the others sleep. A host that is slow for a minute is then slow
for all of them, and what is told is the ratio within each round. Nothing but steps is timed: no images are read, no
features cached. Memory is the peak of building the trainer and of its steps, above the bare process.

`eager-full`, which all are compared with, is one of them; the others are entries of a recipe file
(benchmarks/steps.py), `--group` of them at a time, each group with an `eager-full` of its own. A run adds one line to
`results/paired_steps.jsonl`; nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import append, lines
from steps import EAGER, RECIPES, add_options, plan_of, prepare, step_of
from turns import ratios, serve, take_turns

from edgetune.measure import PeakMeter
from edgetune.model.registry import find_spec
from edgetune.train import torch_engine

NAME = "paired_steps"
DEFAULT = "lean-full,edgetune"  # of recipes.json


def worker(name: str, scratch: Path, recipes: Path, settings: dict[str, Any]) -> None:
    """Take a step whenever a line comes in, and say how long it took and what memory it has taken so far."""
    plan = plan_of(name, scratch, recipes, **settings)
    meter = PeakMeter.start(lambda: torch_engine.start(plan))
    step = step_of(plan, scratch)
    serve(step, lambda: (meter.peak_bytes() or 0) - (meter.baseline_bytes or 0))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One line of the results."""
    size = options.image_size or find_spec(options.model).image_size
    shared = {"model": options.model, "image_size": size, "batch_size": options.batch_size}
    known = list(json.loads(options.recipe.read_text()))
    asked = options.methods or (DEFAULT if options.recipe == RECIPES else ",".join(known))
    names = [name for name in asked.split(",") if name != EAGER]
    groups = []
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), options.model, size)
        settings = json.dumps(shared | {"threads": options.threads})
        command = [sys.executable, __file__, "worker", scratch, str(options.recipe), settings]
        for start in range(0, len(names), options.group):
            taking = [EAGER, *names[start : start + options.group]]
            groups.append(take_turns({name: [*command, name] for name in taking}, options.rounds))
            for name, found in groups[-1].items():
                print(name, f"{1000 * statistics.median(found['steps_s']):.0f} ms", flush=True)
    return shared | {"recipe": options.recipe.name, "threads": options.threads, "groups": groups}


def cosine(entry: dict[str, Any], measured: dict[str, Any]) -> str:
    """The worst parameter's gradient under an entry of a recipe file, as benchmarks/gradients.py measured it.

    Blank where the gradient is another function's (fewer blocks, smaller frozen weights) or was not measured.
    """
    levers = dict(text.split("=") for text in entry["arguments"] if "=" in text)
    if entry["method"] != "full" or {"precision", "recompute_share"} & set(levers):
        return ""
    name = levers.get("saved_precision", "fp32") + ", recomputed" * (levers.get("saved_activations") == "recompute")
    found = measured.get(name)
    return "" if found is None else f"{found['worst_cosine']:.6f}"


def table(recipe: Path) -> None:
    """Markdown: of each model, the last measurement of each entry of the file."""
    entries = {EAGER: {"method": "none", "arguments": []}, **json.loads(recipe.read_text())}
    gradients = {line["model"]: line["levers"] for line in lines("gradients")}
    models: dict[tuple[str, int, int], dict[str, dict[str, Any]]] = {}
    for line in lines(NAME):
        if line["recipe"] == recipe.name:
            of_model = models.setdefault((line["model"], line["image_size"], line["batch_size"]), {})
            of_model |= {name: group for group in line["groups"] for name in group}
    for (model, size, batch), groups in models.items():
        print(f"\n{model}, {size} px, batch {batch}\n")
        print("| trainer | peak | ms a step, median (lowest) | by `eager-full`'s [95 %] | rounds | worst cosine |")
        print("|---|---:|---:|---:|---:|---:|")
        for name in (name for name in entries if name in groups):
            found, first = groups[name][name], groups[name][EAGER]["steps_s"]
            seconds = found["steps_s"]
            median, low, high = ratios(seconds, of=first)
            print(
                f"| `{name}` | {found['above_bytes'] / 2**20:.0f} MiB |"
                f" {1000 * statistics.median(seconds):.0f} ({1000 * min(seconds):.0f}) |"
                f" {median:.2f} [{low:.2f}, {high:.2f}] | {len(seconds)} |"
                f" {cosine(entries[name], gradients.get(model, {}))} |"
            )


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    add_options(running)
    running.add_argument("--methods", help=f"entries of the recipe file; {DEFAULT}, or all of another file")
    running.add_argument("--group", type=int, default=6, help="entries in memory at a time")
    running.add_argument("--rounds", type=int, default=40)
    working = commands.add_parser("worker", help="what `run` starts")
    working.add_argument("scratch", type=Path)
    working.add_argument("recipe", type=Path)
    working.add_argument("settings", type=json.loads)
    working.add_argument("name")
    showing = commands.add_parser("table")
    for command in (running, showing):
        command.add_argument("--recipe", type=Path, default=RECIPES)
    options = parser.parse_args()
    if options.command == "run":
        append(NAME, run(options))
    elif options.command == "worker":
        worker(options.name, options.scratch, options.recipe, options.settings)
    else:
        table(options.recipe)


if __name__ == "__main__":
    main()
