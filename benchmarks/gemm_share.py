"""What share of the machine's matrix rate a training step reaches, and where the rest of its time goes.

    python benchmarks/gemm_share.py run --model vit_tiny_patch16_224 --batch-size 8
    python benchmarks/gemm_share.py run --model vit_base_patch16_224 --batch-size 4 --rounds 6
    python benchmarks/gemm_share.py table

Three trainers take the same steps on random pixels (or features): `eager-full` is timm's model with torch's AdamW,
`lean-full` and `edgetune` are those of recipes.json. For each:

- the work that had to be done (`edgetune.plan.work`: recomputation is not counted) by the time of a step, against the
  rate of a product of two 2048 x 2048 matrices (`cube`);
- the step's own matrix products and fused attention, seen by a dispatch mode and timed back to back on tensors of the
  same shapes and strides: the best that a step of these shapes could reach (`roof`), and the share of it reached;
- the time of each kind of operation by torch's profiler.

Step, cube and roof take turns, and shares are medians of the rounds: the machine's speed may move meanwhile. A run adds
one line to `results/gemm_share.jsonl`; nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import append, lines
from steps import EAGER, add_options, plan_of, prepare, step_of
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from edgetune.model.registry import find_spec
from edgetune.plan.work import step_flops

NAME = "gemm_share"
CUBE = 2048
WARM_UP = 2  # rounds that are not counted

_ATTENTION = ("_scaled_dot_product_flash_attention_for_cpu",)
_PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "convolution", "convolution_backward", "mkldnn_convolution")
# kinds of operation by torch's names, the first that matches
_KINDS = {
    "matrix products": ("mm", "conv"),
    "attention": ("scaled_dot_product", "softmax"),
    "norms": ("layer_norm",),
    "GELU": ("gelu",),
    "optimizer": ("adam", "sqrt", "div_", "lerp", "addc", "_foreach"),
    "packing and unpacking": ("round", "abs", "amax", "aten::to", "_to_copy", "clamp", "ceil"),
    "copies": ("copy", "cat", "contiguous", "clone", "fill", "zero", "stack"),
    "sums and products by element": ("add", "mul", "sub", "sum", "mean", "div", "rsub"),
}


class Products(TorchDispatchMode):
    """Counts matrix products and fused attention by what they are given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[tuple[Any, tuple[Any, ...]]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _PRODUCTS or name.startswith(_ATTENTION):
            self.found[func, tuple(_described(value) for value in args)] += 1
        return func(*args, **(kwargs or {}))


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.stride(), value.dtype)
    return tuple(value) if isinstance(value, list) else value


def _made(value: Any) -> Any:
    if isinstance(value, tuple) and value and value[0] == "tensor":
        _, shape, stride, dtype = value
        return torch.empty_strided(shape, stride, dtype=dtype).fill_(0.01)
    return list(value) if isinstance(value, tuple) else value


def seconds_of(call: Callable[[], object]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def back_to_back(step: Callable[[], object]) -> Callable[[], object]:
    """The matrix products and attention of a step, one after the other, on tensors made beforehand."""
    with Products() as products:
        step()
    calls = [
        (func, [_made(value) for value in described], count) for (func, described), count in products.found.items()
    ]

    def run() -> None:
        for func, given, count in calls:
            for _ in range(count):
                func(*given)

    return run


def shares(step: Callable[[], object], steps: int) -> dict[str, float]:
    """Share of the profiled time by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
    times: Counter[str] = Counter()
    for event in found.key_averages():
        kinds = (kind for kind, parts in _KINDS.items() if any(part in event.key.lower() for part in parts))
        times[next(kinds, "the rest")] += event.self_cpu_time_total
    total = sum(times.values())
    return {kind: round(value / total, 4) for kind, value in times.most_common()}


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """One line of the results."""
    size = arguments.image_size or find_spec(arguments.model).image_size
    prepare(scratch, arguments.model, size)
    square = torch.randn(CUBE, CUBE)
    found: dict[str, Any] = {}
    for name in (EAGER, "lean-full", "edgetune"):
        shared = {"model": arguments.model, "image_size": size, "batch_size": arguments.batch_size}
        plan = plan_of(name, scratch, threads=arguments.threads, **shared)
        spec = find_spec(plan.model).at(size, len(plan.data.classes))
        step = step_of(plan, scratch)
        trained = [block.index for block in plan.blocks if block.trainable]
        flops = plan.batch_size * step_flops(spec, plan, trained, [float(spec.patches)] * spec.depth)
        products = back_to_back(step)
        rounds = []
        for number in range(WARM_UP + arguments.rounds):
            taken = seconds_of(lambda: square @ square), seconds_of(step), seconds_of(products)
            if number >= WARM_UP:
                rounds.append(taken)
        found[name] = {
            "step_flops": flops,
            "rounds_s": [[round(value, 5) for value in taken] for taken in rounds],  # cube, step, products
            "step_s": statistics.median(step_s for _, step_s, _ in rounds),
            "share_of_cube": statistics.median(flops / step_s * cube_s / (2 * CUBE**3) for cube_s, step_s, _ in rounds),
            "share_of_roof": statistics.median(products_s / step_s for _, step_s, products_s in rounds),
            "part": plan.micro_batch_size,
            "profile": shares(step, 3),
        }
        print(name, json.dumps(found[name]), flush=True)
    return {
        "model": arguments.model,
        "image_size": size,
        "batch_size": arguments.batch_size,
        "threads": arguments.threads,
        "cube_flops_per_s": statistics.median(
            2 * CUBE**3 / cube_s for trainer in found.values() for cube_s, _, _ in trainer["rounds_s"]
        ),
        "trainers": found,
    }


def table() -> None:
    """Markdown: the last line of each model."""
    records = {(line["model"], line["image_size"], line["batch_size"]): line for line in lines(NAME)}
    for (model, size, batch), line in records.items():
        rate = line["cube_flops_per_s"] / 1e9
        print(f"\n{model}, {size} px, batch {batch}; {CUBE}-cube product: {rate:.0f} GFLOP/s\n")
        print("| trainer | ms a step | GFLOP/s | share of the cube | share of the shape roof | where the time goes |")
        print("|---|---:|---:|---:|---:|---|")
        for name, found in line["trainers"].items():
            kinds = ", ".join(
                f"{kind} {100 * share:.0f} %" for kind, share in found["profile"].items() if share > 0.015
            )
            print(
                f"| `{name}` | {1000 * found['step_s']:.0f} | {found['step_flops'] / found['step_s'] / 1e9:.0f} |"
                f" {100 * found['share_of_cube']:.0f} % | {100 * found['share_of_roof']:.0f} % | {kinds} |"
            )


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    add_options(running)
    running.add_argument("--rounds", type=int, default=15)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "table":
        table()
        return
    with tempfile.TemporaryDirectory() as scratch:
        append(NAME, measure(arguments, Path(scratch)))


if __name__ == "__main__":
    main()
