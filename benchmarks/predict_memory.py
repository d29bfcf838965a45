"""Predicted beside measured peak memory: random plans, each run by `edgetune fit` in a fresh process.

    python benchmarks/predict_memory.py run --series design --count 60
    python benchmarks/predict_memory.py run --series held-out-11 --count 200
    python benchmarks/predict_memory.py table --series held-out-11

A plan is drawn from its series' name and its number: one of four models from nano to ViT-B, one of four image sizes,
a method of either trainer, any of its levers, a batch of 1 to 64, and a memory cap between one and three times the
smallest feasible room above the bare process, or none. The bill was calibrated on the series `design`, and bill and
trainer were mended where later ones showed them wrong: none played a part in the bill it judged (docs/planner.md).
Batches whose four steps would take more than `MOST_FLOPS_OF` the series are halved until they do not.

A case makes its own images (random colours) and random weights, so nothing is downloaded; it trains for four steps in
two epochs, which covers filling a cache, update, evaluation and saving. The bare process is measured once per run of
this script, by `edgetune profile`. One line per plan goes to `results/predict_memory.jsonl`; a plan that has a line is
not repeated.

Errors are predicted less measured: of the peak above the baseline, relative to the larger of it and 32 MiB; and of the
whole process. The upper bound is the plan's `peak_memory_most_bytes`. Memory is all that is measured, so two of these
may run beside each other, on different numbers (`--first`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from machine import append, lines
from workloads import prepare_synthetic

from edgetune.model.registry import find_spec
from edgetune.plan.machine import COMMAND_BYTES
from edgetune.plan.work import forward_flops

NAME = "predict_memory"
FLOOR_BYTES = 32 << 20
STEPS_PER_EPOCH, EPOCHS, CLASSES = 2, 2, 4
SERIES = (
    "design",
    "held-out",
    "held-out-2",
    "held-out-3",
    "held-out-4",
    "held-out-5",
    "held-out-6",
    "held-out-7",
    "held-out-8",
    "held-out-9",
    "held-out-10",
    "held-out-11",
)
MOST_FLOPS = 3e12
MOST_FLOPS_OF = dict.fromkeys(SERIES[SERIES.index("held-out-3") :], 1e12) | {"caps-2": 5e11}  # of `caps_held.py`
HALVED = SERIES[SERIES.index("held-out-7") :]  # whose larger models took most of the time
SIZES = {
    "vit_nano_patch8_64": (32, 64, 96, 128),
    "vit_tiny_patch16_224": (96, 128, 160, 224),
    "vit_small_patch14_dinov2": (98, 126, 168, 224),
    "vit_base_patch16_224": (96, 128, 160, 224),
}
LEVERS: dict[str, tuple[str, ...]] = {
    "precision": ("fp32", "fp32", "bf16"),
    "frozen_precision": ("fp32", "fp32", "bf16"),
    "frozen_weights": ("fp32", "bf16", "int8", "disk"),
    "optimizer": ("adamw", "adamw", "adamw", "sgd", "sgd-plain"),
    "optimizer_state": ("fp32", "int8", "factored"),
    "saved_activations": ("full", "full", "recompute"),
    "saved_precision": ("fp32", "bf16", "int8", "int4"),
    "feature_cache": ("off", "fp16", "int8"),
    "feature_views": ("1", "1", "2"),
    "part_tokens": ("100", "200", "400", "800"),
    "token_max": ("1", "1", "0.7", "0.5"),
}
AUTOGRAD = ("full", "checkpoint", "last-2", "last-4", "head", "lora", "alast", "random-k", "alast-lora")
WORDS = ("--model", "--method", "--image-size", "--batch-size", "--threads")

WRITE_WEIGHTS = """
import sys
from pathlib import Path
import torch
from edgetune.model.registry import find_spec
from edgetune.model.vit import VisionTransformer, initialise
from edgetune.model.weights import save_weights
torch.manual_seed(0)
model = VisionTransformer(find_spec(sys.argv[1]))
initialise(model)
save_weights(Path(sys.argv[2]), model, {})
"""


class Case(NamedTuple):
    """One plan. `cap` is a multiple of the smallest feasible room above the bare process; None: no pressure."""

    model: str
    image_size: int
    batch_size: int
    method: str
    levers: tuple[str, ...]
    cap: float | None

    @property
    def name(self) -> str:
        """What a reader sees."""
        tight = "" if self.cap is None else f", cap {self.cap:.2f}"
        return (
            f"{self.model} {self.image_size} px, batch {self.batch_size}, {self.method} {' '.join(self.levers)}{tight}"
        )


def draw(series: str, number: int) -> Case:
    """The case of that number."""
    rng = random.Random(f"{series} {number}")
    model = rng.choice(list(SIZES))
    size = rng.choice(SIZES[model])
    spec = find_spec(model).at(size)
    batch, most_flops = round(2 ** rng.uniform(0, 6)), MOST_FLOPS_OF.get(series, MOST_FLOPS)
    if series in HALVED and spec.width > 192:
        most_flops /= 2
    while batch > 1 and 3 * forward_flops(spec) * batch * STEPS_PER_EPOCH * EPOCHS > most_flops:
        batch //= 2
    cap = rng.choice([None, rng.uniform(1, 1.5), rng.uniform(1, 3)])
    levers: list[str] = []
    if rng.random() < 0.3:
        method = rng.choice(AUTOGRAD)
    else:
        method = rng.choice(["edgetune"] * 6 + ["full", "full", f"last-{rng.randint(1, spec.depth)}", "lora", "head"])
        chosen = {name: rng.choice(values) for name, values in LEVERS.items() if rng.random() < 0.6}
        if method == "edgetune":
            trained = rng.randint(1, spec.depth)
            chosen |= {"trained_blocks": str(trained), "k": str(rng.randint(1, trained))}
        else:
            chosen.pop("token_max", None)
        levers = ["trainer=lean", *(f"{name}={value}" for name, value in chosen.items())]
    return Case(model, size, batch, method, tuple(levers), cap)


def edgetune(*arguments: str, threads: int) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh process."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "edgetune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def options_of(case: Case, data: Path, weights: Path, profile: Path, threads: int) -> list[str]:
    """The arguments that `plan` and `fit` share."""
    values = (case.model, case.method, str(case.image_size), str(case.batch_size), str(threads))
    options = [str(data), *(word for pair in zip(WORDS, values, strict=True) for word in pair)]
    options += [
        "--epochs",
        str(EPOCHS),
        "--workers",
        "0",
        "--engine",
        "torch",
        "--weights",
        str(weights),
        "--profile",
        str(profile),
    ]
    return options + [word for lever in case.levers for word in ("--lever", lever)]


def measure(case: Case, scratch: Path, kept: Kept, threads: int) -> dict[str, Any]:
    """Plan, fit, and compare."""
    data, out = scratch / "data", scratch / "run"
    train = -(-STEPS_PER_EPOCH * case.batch_size // CLASSES) * CLASSES
    prepare_synthetic(data, train=train, val=2 * CLASSES, side=case.image_size * 5 // 4)
    options = options_of(case, data, kept.weights(case.model), kept.profile, threads)
    if case.cap is not None:
        refused = json.loads(edgetune("plan", *options, "--memory", "1MiB", "--json", threads=threads).stdout)
        runtime = kept.runtime_bytes
        room = refused["nearest_feasible"]["memory_bytes"] - runtime
        options += ["--memory", str(int(runtime + case.cap * room))]
    done = edgetune("fit", *options, "--out", str(out), "--quiet", threads=threads)
    if not (out / "result.json").exists():
        return {"refused": done.stderr.strip()[-600:], "exit": done.returncode}
    result, plan = (json.loads((out / name).read_text()) for name in ("result.json", "plan.json"))
    bill, memory = plan["predicted"]["memory"], result["memory"]
    whole, peak = plan["predicted"]["peak_memory_bytes"], memory["measured_peak_bytes"]
    predicted, measured = whole - bill["runtime"], peak - memory["baseline_bytes"]
    events = [line for line in (out / "metrics.jsonl").read_text().splitlines() if '"event"' in line]
    return {
        "micro_batch_size": plan["micro_batch_size"],
        "trained": sum(block["trainable"] for block in plan["blocks"]),
        "k": plan["k"],
        "keep_max_tokens": plan["blocks"][-1]["keep_max_tokens"],
        "allocator": plan["allocator"],
        "cached": plan["feature_cache"] is not None,
        "adaptive": plan["alast"] is not None and plan["alast"]["mode"] != "random",
        "bill": bill,
        "cap_bytes": plan["caps"]["memory_bytes"],
        "baseline_bytes": memory["baseline_bytes"],
        "predicted_above_baseline_bytes": predicted,
        "measured_above_baseline_bytes": measured,
        "most_above_baseline_bytes": plan["predicted"]["peak_memory_most_bytes"] - bill["runtime"],
        "error": (predicted - measured) / max(measured, FLOOR_BYTES),
        "process_error": (whole - peak) / peak,
        "stopped_by": result["stopped_by"],
        "events": len(events),
    }


class Kept:
    """What the runs of a series share: a profile of this machine, and random weights of each model.

    Args:
        folder: where they lie.
        threads: of the profile.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder, self.profile = folder, folder / "profile.json"
        made = edgetune("profile", "--quick", "--out", str(self.profile), threads=threads)
        if made.returncode:
            raise SystemExit(f"edgetune profile failed: {made.stderr}")
        self.runtime_bytes: int = json.loads(self.profile.read_text())["compute"]["runtime_bytes"] + COMMAND_BYTES

    def weights(self, model: str) -> Path:
        """A file of them, made when it is first asked for."""
        path = self._folder / f"{model}.safetensors"
        if not path.exists():
            subprocess.run([sys.executable, "-c", WRITE_WEIGHTS, model, str(path)], check=True)
        return path


def run(series: str, first: int, count: int, threads: int) -> None:
    """Run the plans of a series that have no line yet."""
    done = {line["number"] for line in lines(NAME) if line["series"] == series}
    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(Path(folder), threads)
        for number in (number for number in range(first, count) if number not in done):
            case = draw(series, number)
            with tempfile.TemporaryDirectory() as scratch:
                record = measure(case, Path(scratch), kept, threads)
            append(NAME, {"series": series, "number": number, "case": case.name, "threads": threads, **record})
            shown = f"{record['error']:+.1%}" if "error" in record else f"exit {record['exit']}: {record['refused']}"
            print(f"{number:4} {case.name}: {shown}", flush=True)


def table(series: str) -> None:
    """Markdown: the summary by kind of plan, then the worst ten."""
    records = {
        line["number"]: line for line in lines(NAME) if line["series"] == series
    }.values()  # the last line counts
    found = [line for line in records if "error" in line]
    print("| plans | number | median error | 95th percentile | whole process, median | an upper bound in |")
    print("|---|---:|---:|---:|---:|---:|")
    lean = [line for line in found if "trainer=lean" in line["case"]]
    short = [line for line in lean if " precision=bf16" in line["case"] or "frozen_precision=bf16" in line["case"]]
    groups = {
        "all": found,
        "without products in bf16": [line for line in found if line not in short],
        "with products in bf16": short,
        "lean trainer": lean,
        "autograd": [line for line in found if line not in lean],
        "adaptive tokens": [line for line in found if line["adaptive"]],
        "fixed tokens": [line for line in found if not line["adaptive"]],
        **{model: [line for line in found if line["case"].startswith(model)] for model in SIZES},
    }
    for name, group in groups.items():
        if group:
            print(f"| {name} | {len(group)} | {' | '.join(summary(group))} |")
    refused = len(records) - len(found)
    print(f"\n{refused} of {len(records)} draws were refused by the planner and ran nothing.\n")
    print("| worst plans | predicted MiB | measured MiB | error |\n|---|---:|---:|---:|")
    for line in sorted(found, key=lambda line: -abs(line["error"]))[:10]:
        predicted, measured = (line[f"{kind}_above_baseline_bytes"] / 2**20 for kind in ("predicted", "measured"))
        print(f"| {line['number']}: {line['case']} | {predicted:.0f} | {measured:.0f} | {line['error']:+.1%} |")


def summary(group: list[dict[str, Any]]) -> list[str]:
    """Median and 95th percentile of the error, median of the process's, share of upper bounds."""
    errors = sorted(abs(line["error"]) for line in group)
    high = errors[min(len(errors) - 1, int(0.95 * len(errors)))]
    whole = statistics.median(abs(line["process_error"]) for line in group)
    bounds = sum(_bounded(line) for line in group) / len(group)
    return [f"{statistics.median(errors):.1%}", f"{high:.1%}", f"{whole:.1%}", f"{bounds:.0%}"]


def _bounded(line: dict[str, Any]) -> bool:
    most: int = line.get("most_above_baseline_bytes", line["predicted_above_baseline_bytes"])
    return bool(line["measured_above_baseline_bytes"] <= most)


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--series", choices=SERIES, default="design")
    running.add_argument("--first", type=int, default=0)
    running.add_argument("--count", type=int, default=60)
    running.add_argument("--threads", type=int, default=2)
    showing = commands.add_parser("table")
    showing.add_argument("--series", choices=SERIES, default=SERIES[-1])
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.series, arguments.first, arguments.count, arguments.threads)
    else:
        table(arguments.series)


if __name__ == "__main__":
    main()
