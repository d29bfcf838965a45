"""Predicted beside measured peak memory: plans of every method, each run by `edgetune fit` in a fresh process.

    python benchmarks/predict_memory.py run [--only NAME] [--threads 1]
    python benchmarks/predict_memory.py table

A case makes its own images (random colours) and random weights, so nothing is downloaded; it trains for four steps in
two epochs, which covers update, evaluation and saving. `cap` tightens the memory cap to a multiple of the smallest
feasible room above the bare process, so that batches are split. One line per case goes to
`results/predict_memory.jsonl`; a case that has a line is not repeated.

The error is predicted less measured peak above the baseline, relative to the larger of the measured one and 32 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from machine import append, lines

NAME = "predict_memory"
FLOOR_BYTES = 32 << 20
STEPS_PER_EPOCH, EPOCHS, CLASSES = 2, 2, 4

WRITE_WEIGHTS = """
import sys
from pathlib import Path
import torch
from edgetune.model.registry import find_spec
from edgetune.model.vit import VisionTransformer
from edgetune.model.weights import save_weights
torch.manual_seed(0)
model = VisionTransformer(find_spec(sys.argv[1]))
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.02)
save_weights(Path(sys.argv[2]), model, {})
"""


class Case(NamedTuple):
    """One plan. `cap` is a multiple of the smallest feasible room above the bare process; None: no pressure."""

    model: str
    image_size: int
    batch_size: int
    method: str
    cap: float | None = None

    @property
    def name(self) -> str:
        """How a line is found again."""
        tight = "" if self.cap is None else f" cap {self.cap:g}"
        return f"{self.model} {self.image_size} b{self.batch_size} {self.method}{tight}"


NANO, TINY, SMALL, DINO = (
    "vit_nano_patch8_64",
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_small_patch14_dinov2",
)
CASES = [
    Case(NANO, 64, 32, "full"),
    Case(NANO, 64, 32, "edgetune"),
    Case(NANO, 64, 32, "head"),
    Case(NANO, 64, 8, "alast"),
    Case(NANO, 128, 8, "last-2"),
    Case(NANO, 64, 32, "full", cap=1.3),
    Case(NANO, 64, 32, "edgetune", cap=1.5),
    Case(TINY, 224, 8, "full"),
    Case(TINY, 224, 8, "head"),
    Case(TINY, 224, 8, "last-4"),
    Case(TINY, 224, 8, "lora"),
    Case(TINY, 224, 8, "checkpoint"),
    Case(TINY, 224, 8, "random-k"),
    Case(TINY, 224, 8, "edgetune"),
    Case(TINY, 224, 8, "edgetune", cap=1.2),
    Case(TINY, 128, 16, "full"),
    Case(TINY, 128, 16, "alast-lora"),
    Case(TINY, 224, 8, "full", cap=1.1),
    Case(SMALL, 160, 4, "lora"),
    Case(SMALL, 224, 4, "last-4"),
    Case(SMALL, 224, 4, "edgetune", cap=1.4),
    Case(DINO, 98, 16, "full"),
    Case(DINO, 98, 16, "edgetune"),
    Case(DINO, 98, 16, "random-k"),
]


def make_images(folder: Path, case: Case) -> None:
    """Just enough images of random colours for the steps of the case."""
    script = (
        "import sys; import numpy as np; from pathlib import Path; from PIL import Image\n"
        "folder, side, train = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])\n"
        "rng = np.random.default_rng(0)\n"
        "for part, count in (('train', train), ('val', 2)):\n"
        f"    for label in range({CLASSES}):\n"
        "        (folder / part / f'class{label}').mkdir(parents=True)\n"
        "        for index in range(count):\n"
        "            coarse = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)\n"
        "            image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)\n"
        "            image.save(folder / part / f'class{label}' / f'{index}.jpg')\n"
    )
    train = -(-STEPS_PER_EPOCH * case.batch_size // CLASSES)
    side = case.image_size * 5 // 4
    subprocess.run([sys.executable, "-c", script, str(folder), str(side), str(train)], check=True)


def edgetune(*arguments: str, threads: int) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh process."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "edgetune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def measure(case: Case, scratch: Path, threads: int) -> dict[str, Any]:
    """Plan, fit, and compare."""
    data, weights, out = scratch / "data", scratch / "weights.safetensors", scratch / "run"
    make_images(data, case)
    options = [str(data), "--model", case.model, "--method", case.method, "--image-size", str(case.image_size)]
    options += ["--batch-size", str(case.batch_size), "--epochs", str(EPOCHS), "--workers", "0"]
    options += ["--threads", str(threads)]
    subprocess.run([sys.executable, "-c", WRITE_WEIGHTS, case.model, str(weights)], check=True)
    options += ["--weights", str(weights)]
    if case.cap is not None:
        refused = json.loads(edgetune("plan", *options, "--memory", "1MiB", "--json", threads=threads).stdout)
        easy = json.loads(edgetune("plan", *options, "--json", threads=threads).stdout)
        runtime = easy["predicted"]["memory"]["runtime"]
        room = refused["nearest_feasible"]["memory_bytes"] - runtime
        options += ["--memory", str(int(runtime + case.cap * room))]
    done = edgetune("fit", *options, "--out", str(out), "--quiet", threads=threads)
    if not (out / "result.json").exists():
        raise SystemExit(f"{case.name}: exit {done.returncode}\n{done.stderr[-2000:]}")
    result, plan = (json.loads((out / name).read_text()) for name in ("result.json", "plan.json"))
    bill, memory = plan["predicted"]["memory"], result["memory"]
    predicted = plan["predicted"]["peak_memory_bytes"] - bill["runtime"]
    measured = memory["measured_peak_bytes"] - memory["baseline_bytes"]
    return {
        "case": case.name,
        "micro_batch_size": plan["micro_batch_size"],
        "lowest_trainable_block": plan["lowest_trainable_block"],
        "k": plan["k"],
        "keep_max_tokens": plan["blocks"][-1]["keep_max_tokens"],
        "mean_keep": result["work"]["mean_keep"],
        "adaptive": plan["alast"] is not None and plan["alast"]["mode"] != "random",
        "bill": bill,
        "model": plan["predicted"]["model"],
        "baseline_bytes": memory["baseline_bytes"],
        "predicted_above_baseline_bytes": predicted,
        "measured_above_baseline_bytes": measured,
        "error": (predicted - measured) / max(measured, FLOOR_BYTES),
        "stopped_by": result["stopped_by"],
        "threads": threads,
    }


def run(only: str | None, threads: int) -> None:
    """Run the cases that have no line yet."""
    done = {line["case"] for line in lines(NAME)}
    for case in CASES:
        if case.name in done or (only and only not in case.name):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            record = measure(case, Path(scratch), threads)
        append(NAME, record)
        print(f"{case.name:55} {record['error']:+.1%}", flush=True)


def table() -> None:
    """Markdown: every case, then the summary."""
    print("| plan | micro-batch | predicted MiB | measured MiB | error |")
    print("|---|---:|---:|---:|---:|")
    records = {line["case"]: line for line in lines(NAME)}  # the last line of a case counts
    for name, line in records.items():
        predicted, measured = (line[f"{kind}_above_baseline_bytes"] / 2**20 for kind in ("predicted", "measured"))
        marked = " ¹" if line["adaptive"] else ""
        print(
            f"| {name}{marked} | {line['micro_batch_size']} | {predicted:.0f} | {measured:.0f} | {line['error']:+.1%} |"
        )
    for title, wanted in (("fixed tokens", False), ("adaptive tokens ¹", True)):
        errors = [line["error"] for line in records.values() if line["adaptive"] is wanted]
        if errors:
            share = sum(error >= 0 for error in errors) / len(errors)
            print(
                f"\n{title}: {len(errors)} plans, median error {statistics.median(map(abs, errors)):.1%},"
                f" largest {max(map(abs, errors)):.1%}, an upper bound in {share:.0%}."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--only", help="cases whose name holds this text")
    running.add_argument("--threads", type=int, default=1)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.only, arguments.threads)
    else:
        table()


if __name__ == "__main__":
    main()
