"""Does onnxruntime-training train as torch does? The same plan, weights and batches in both, loss by loss.

    scripts/ort_training_env.sh
    python benchmarks/ort_training.py run --model vit_nano_patch8_64 --method last-2
    python benchmarks/ort_training.py run --model vit_tiny_patch16_224 --image-size 96 --method full
    python benchmarks/ort_training.py table

The artifacts are made and trained with in the environment of that script (`--python` names another), which has no
torch. The plan is `edgetune plan`'s for the bundled digits; weights are the bundled ones, or random where a model has
none. torch's side is `torch.optim.AdamW` over all trained parameters in one group, since onnxruntime-training's update
has no groups; what edgetune's own rule (no decay of biases and norms) would have given is recorded beside it.

A run adds one line to `results/ort_training.jsonl`; `table` prints the last of each case as Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import append, lines
from torch.nn import functional as F

from edgetune import schema
from edgetune.data.folder import scan
from edgetune.data.loader import Loader
from edgetune.data.samples import unpack
from edgetune.export.ort_training import trained_names
from edgetune.model.header import WeightsMetadata
from edgetune.model.registry import BUNDLED_MODEL, find_spec
from edgetune.model.spec import ViTSpec
from edgetune.model.vit import VisionTransformer, initialise
from edgetune.model.weights import build_model, save_weights
from edgetune.optim.fused import Optimizer
from edgetune.plan import make_plan

NAME = "ort_training"
ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-ort-training" / "bin" / "python"


def prepare(
    folder: Path, *, model: str, method: str, lr: float, image_size: int | None, batch: int, steps: int
) -> schema.Plan:
    """A run folder as `fit` leaves it, and `batches.npz` beside it."""
    data = unpack("digits", folder / "digits")
    plan = make_plan(
        data, model=model, method=method, lr=lr, image_size=image_size, batch_size=batch, workers=0, flip=False
    )
    spec = spec_of(plan)
    (folder / "run").mkdir()
    schema.save(plan, folder / "run" / "plan.json")
    if model == BUNDLED_MODEL:
        network, _ = build_model(spec, class_names=plan.data.classes)
    else:
        torch.manual_seed(0)
        network = VisionTransformer(spec)
        initialise(network)
    save_weights(folder / "run" / "best.safetensors", network, WeightsMetadata.of(spec, plan.data.classes))
    loader = Loader(
        scan(data, plan.seed).train,
        batch_size=batch,
        image_size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        augment=True,
        flip=False,
        seed=plan.seed,
        drop_last=True,
    )
    taken = list(islice(loader.epoch(0), steps))
    images, labels = (np.stack([getattr(batch, name) for batch in taken]) for name in ("images", "labels"))
    np.savez(folder / "batches.npz", images=images, labels=labels.astype(np.int64))
    return plan


def spec_of(plan: schema.Plan) -> ViTSpec:
    return find_spec(plan.model).at(plan.image_size, len(plan.data.classes))


def with_ort(python: Path, folder: Path) -> dict[str, Any]:
    """Make the artifacts of `folder/run` and train with them, in an environment of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            [str(python), *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{arguments[0]} failed: {done.stderr[-2000:]}")
        return done.stdout

    run("-m", "edgetune", "export", folder / "run", "--format", "ort-training", "--out", folder / "artifacts")
    found: dict[str, Any] = json.loads(
        run(ROOT / "examples" / "train_with_ort.py", folder / "artifacts", folder / "batches.npz")
    )
    return found


def with_torch(plan: schema.Plan, folder: Path, *, grouped: bool = False) -> list[float]:
    """The losses torch gives. `grouped`: with edgetune's own update, which lets biases and norms be."""
    model, _ = build_model(spec_of(plan), folder / "run" / "best.safetensors")
    named = dict(model.named_parameters())
    trained = {name: named[name] for name in trained_names(model.spec, plan)}
    for name, parameter in named.items():
        parameter.requires_grad_(name in trained)
    rate, decay = plan.recipe.learning_rate, plan.recipe.weight_decay
    ours = Optimizer("adamw", trained.items(), decay)
    theirs = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=decay)
    losses = []
    batches = np.load(folder / "batches.npz")
    for images, labels in zip(batches["images"], batches["labels"], strict=True):
        logits = model(torch.from_numpy(images))
        loss = F.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=plan.recipe.label_smoothing)
        loss.backward()
        if grouped:
            ours.step(rate)
        else:
            theirs.step()
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One line of the results."""
    plan = prepare(
        folder,
        model=arguments.model,
        method=arguments.method,
        lr=arguments.lr,
        image_size=arguments.image_size,
        batch=arguments.batch_size,
        steps=arguments.steps,
    )
    found = with_ort(arguments.python, folder)
    torchs, grouped = with_torch(plan, folder), with_torch(plan, folder, grouped=True)
    manifest = schema.load(folder / "artifacts" / "edgetune.json", schema.OrtTraining)
    return {
        "model": plan.model,
        "image_size": plan.image_size,
        "method": plan.method,
        "batch_size": plan.batch_size,
        "steps": len(torchs),
        "learning_rate": plan.recipe.learning_rate,
        "weight_decay": plan.recipe.weight_decay,
        "label_smoothing": plan.recipe.label_smoothing,
        "trained": len(manifest.trained),
        "only_trained_changed": sorted(found["changed"]) == sorted(manifest.trained),
        "largest_loss_difference": float(np.abs(np.subtract(found["losses"], torchs)).max()),
        "largest_loss_difference_to_grouped_decay": float(np.abs(np.subtract(found["losses"], grouped)).max()),
        "losses": found["losses"],
        "torch_losses": torchs,
        "step_s": found["step_s"],
        "peak_bytes": found["peak_bytes"],
        "made_with": manifest.made_with,
    }


def table() -> None:
    """Markdown: the last line of each case."""
    last = {(line["model"], line["image_size"], line["method"]): line for line in lines(NAME)}
    print("| model | trained | first → last loss | largest difference to torch | with decay in groups | peak |")
    print("|---|---|---|---:|---:|---:|")
    for line in last.values():
        print(
            f"| {line['model']}, {line['image_size']} px, batch {line['batch_size']} | {line['method']}"
            f" ({line['trained']} tensors) | {line['losses'][0]:.3f} → {line['losses'][-1]:.3f}"
            f" | {line['largest_loss_difference']:.1e} | {line['largest_loss_difference_to_grouped_decay']:.1e}"
            f" | {line['peak_bytes'] / 1e6:.0f} MB |"
        )


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--python", type=Path, default=PYTHON, help="of the environment with onnxruntime-training")
    running.add_argument("--model", default=BUNDLED_MODEL)
    running.add_argument("--method", default="full")
    running.add_argument("--lr", type=float, default=5e-4, help="the same at every step")
    running.add_argument("--image-size", type=int)
    running.add_argument("--batch-size", type=int, default=8)
    running.add_argument("--steps", type=int, default=20)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "table":
        table()
        return
    if not arguments.python.exists():
        sys.exit(
            f"{arguments.python} does not exist: make it with scripts/ort_training_env.sh, or name one by --python."
        )
    with tempfile.TemporaryDirectory() as scratch:
        append(NAME, measure(arguments, Path(scratch)))


if __name__ == "__main__":
    main()
