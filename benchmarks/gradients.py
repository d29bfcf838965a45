"""How exact the lean trainer's gradients are: against autograd over the same weights, parameter by parameter.

    python benchmarks/gradients.py run --model vit_tiny_patch16_224 --batch-size 8
    python benchmarks/gradients.py run --model vit_base_patch16_224 --batch-size 4 --batches 20
    python benchmarks/gradients.py table

Colour tiles with a class to learn; weights from a file, or random ones that were trained for a few steps first, so that
norms and biases are not at the values they begin with. Every weight trains. For each parameter of timm's and each of
20 batches: the norm of the difference to autograd's gradient by the norm of that (fp32 both), and their cosine. A
parameter whose gradient is under a millionth of the whole is held against the whole instead, and has no cosine. In
fp64, the block as `edgetune.model.block` derives it stands in a model of ours for the module autograd knows.

A run adds one line to `results/gradients.jsonl`; `table` prints the last one of each model as Markdown.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import append, lines
from torch import Tensor
from torch.nn import functional as F
from workloads import prepare_synthetic

from edgetune.data.folder import scan
from edgetune.data.loader import Batch, Loader
from edgetune.model.autograd import block as block_by_hand
from edgetune.model.block import Shape
from edgetune.model.registry import find_spec
from edgetune.model.vit import VisionTransformer, initialise
from edgetune.model.weights import build_model, save_weights
from edgetune.optim.flat import Group
from edgetune.plan import make_plan
from edgetune.schema import Plan
from edgetune.train.lean.engine import LeanEngine

NAME = "gradients"
NEGLIGIBLE = 1e-6  # of the whole gradient's norm
WARM_UP_RATE = 1e-4

# Every lever that touches a gradient where all blocks train; how the batch is split is one of them.
_EXACT = ("optimizer=sgd-plain", "precision=fp32", "saved_activations=full", "saved_precision=fp32")
CASES: dict[str, tuple[str, ...]] = {
    "fp32": _EXACT,
    "fp32, one image at a time": _EXACT,
    "fp32, recomputed": (*_EXACT, "saved_activations=recompute"),
    "bf16": (*_EXACT, "saved_precision=bf16"),
    "int8": (*_EXACT, "saved_precision=int8"),
    "int4": (*_EXACT, "saved_precision=int4"),
    "int8, recomputed": (*_EXACT, "saved_precision=int8", "saved_activations=recompute"),
}


class Recorder(LeanEngine):
    """Writes gradients down instead of following them."""

    found: dict[str, Tensor]

    def gradients(self, batch: Batch, plan: Plan, part: int) -> dict[str, Tensor]:
        """Of every weight, for the batch's mean loss; what is saved and how is read from the plan at every step."""
        self.plan, self.found = plan, {}
        self.train_step(batch, 0.0, part)
        return self.found

    def _update(self, group: Group, learning_rate: float) -> None:
        self.found |= {name: value.clone() for name, value in group.views(self._gradient[: group.size]).items()}


class Worst(NamedTuple):
    """The worst of all parameters and batches so far."""

    error: float = 0.0
    error_of: str = ""
    cosine: float = 1.0
    cosine_of: str = ""
    negligible: int = 0  # gradients held against the whole, and at least one other

    def and_of(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Worst:
        """With another batch's."""
        worst = self
        total = torch.stack([value.norm() for value in theirs.values()]).norm()
        if set(ours) != set(theirs) or not math.isfinite(float(total)):
            raise SystemExit("the two do not train the same parameters, or the gradient is no number.")
        for name, expected in theirs.items():
            found, size = ours[name].double(), expected.double().norm()
            counts = bool(size >= NEGLIGIBLE * total)
            error = float((found - expected).norm() / (size if counts else total))
            if not error <= worst.error:  # so that one which is no number counts, too
                worst = worst._replace(error=error, error_of=name)
            if not counts:
                worst = worst._replace(negligible=worst.negligible + 1)
                continue
            cosine = float(F.cosine_similarity(found.flatten(), expected.double().flatten(), dim=0))
            if not cosine >= worst.cosine:
                worst = worst._replace(cosine=cosine, cosine_of=name)
        return worst

    def record(self) -> dict[str, Any]:
        """As the results keep it."""
        return {
            "worst_relative_error": self.error,
            "worst_relative_error_of": self.error_of,
            "worst_cosine": self.cosine,
            "worst_cosine_of": self.cosine_of,
            "negligible": self.negligible,
        }


def autograd_gradients(
    model: VisionTransformer, batch: Batch, plan: Plan, through: Callable[[Any, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Of the batch's mean loss, with blocks passed by `through`."""
    dtype = next(model.parameters()).dtype
    x = model.embed(torch.from_numpy(batch.images).to(dtype))
    for layer in model.blocks:
        x = through(layer, x)
    labels = torch.from_numpy(batch.labels)
    loss = F.cross_entropy(model.classify(x), labels, label_smoothing=plan.recipe.label_smoothing)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def by_autograd(layer: Any, x: Tensor) -> Tensor:
    """A block as torch differentiates it."""
    y: Tensor = layer(x)[0]
    return y


def batches(plan: Plan) -> Iterator[Batch]:
    """Without end."""
    images, spec = scan(Path(plan.data.path), plan.seed), find_spec(plan.model)
    loader = Loader(
        images.train,
        batch_size=plan.batch_size,
        image_size=plan.image_size,
        mean=spec.mean,
        std=spec.std,
        augment=True,
        seed=plan.seed,
        drop_last=True,
    )
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """One line of the results."""
    spec = find_spec(arguments.model)
    size = arguments.image_size or spec.image_size
    prepare_synthetic(scratch / "data", train=8 * arguments.batch_size, val=4, side=size)

    def planned(*levers: str) -> Plan:
        return make_plan(
            scratch / "data",
            model=arguments.model,
            method="full",
            image_size=size,
            batch_size=arguments.batch_size,
            levers=["trainer=lean", *levers],
            threads=arguments.threads,
            workers=0,
        )

    plan = planned(*_EXACT)
    spec = spec.at(size, len(plan.data.classes))
    torch.manual_seed(0)
    if arguments.weights:
        model, _ = build_model(spec, arguments.weights, class_names=plan.data.classes, seed=0)
    else:
        model = VisionTransformer(spec)
        initialise(model)
    model.eval()
    base = scratch / "base.safetensors"
    save_weights(base, model, {})
    source = batches(plan)
    warming = LeanEngine(planned("optimizer=adamw"), base)
    for _ in range(arguments.warm_up):
        warming.train_step(next(source), WARM_UP_RATE, arguments.part)
    warming.save_weights(scratch / "warm.safetensors", None)
    del warming
    model, _ = build_model(spec, scratch / "warm.safetensors", class_names=plan.data.classes, seed=0)

    shape = Shape(spec.heads, spec.norm_eps)
    recorder = Recorder(plan, scratch / "warm.safetensors")
    plans = {name: planned(*levers) for name, levers in CASES.items()}
    worst = {name: Worst() for name in CASES}
    double = Worst()
    for number in range(arguments.batches):
        batch = next(source)
        theirs = autograd_gradients(model, batch, plan, by_autograd)
        for name, of_case in plans.items():
            part = 1 if name.endswith("at a time") else arguments.part
            worst[name] = worst[name].and_of(recorder.gradients(batch, of_case, part), theirs)
        if number < arguments.double_batches:
            model.double()
            ours = autograd_gradients(
                model, batch, plan, lambda layer, x: block_by_hand(x, dict(layer.named_parameters()), shape)
            )
            double = double.and_of(ours, autograd_gradients(model, batch, plan, by_autograd))
            model.float()
        print(f"batch {number + 1} of {arguments.batches}", flush=True)
    return {
        "model": arguments.model,
        "image_size": size,
        "batch_size": arguments.batch_size,
        "part": arguments.part,
        "batches": arguments.batches,
        "fp64_batches": arguments.double_batches,
        "weights": Path(arguments.weights).name if arguments.weights else None,
        "warm_up_steps": arguments.warm_up,
        "threads": arguments.threads,
        "levers": {"fp64": double.record(), **{name: found.record() for name, found in worst.items()}},
    }


def table() -> None:
    """Markdown: the last line of each model."""
    records = {(line["model"], line["image_size"], line["batch_size"]): line for line in lines(NAME)}
    for (model, size, batch), line in records.items():
        print(f"\n{model}, {size} px, batch {batch}, {line['batches']} batches:\n")
        print("| saved tensors | worst relative error | of | worst cosine | of |")
        print("|---|---:|---|---:|---|")
        for name, found in line["levers"].items():
            print(
                f"| {name} | {found['worst_relative_error']:.1e} | {found['worst_relative_error_of']} |"
                f" {found['worst_cosine']:.6f} | {found['worst_cosine_of']} |"
            )


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--model", default="vit_tiny_patch16_224")
    running.add_argument("--weights", type=Path, help="a .safetensors file; else random ones are trained a little")
    running.add_argument("--image-size", type=int)
    running.add_argument("--batch-size", type=int, default=8)
    running.add_argument("--part", type=int, default=2, help="images that pass a block at a time")
    running.add_argument("--batches", type=int, default=20)
    running.add_argument("--double-batches", type=int, default=2, help="of these, how many in fp64 as well")
    running.add_argument("--warm-up", type=int, default=20, help="steps of training before")
    running.add_argument("--threads", type=int, default=1)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "table":
        table()
        return
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        append(NAME, measure(arguments, Path(scratch)))


if __name__ == "__main__":
    main()
