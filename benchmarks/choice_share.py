"""What choosing the tokens that stay costs: its share of a step of the lean trainer that drops half of them.

    python benchmarks/choice_share.py run --model vit_tiny_patch16_224 --batch-size 8
    python benchmarks/choice_share.py table

Choosing is the attention that patches receive from the class token, the budgets' bookkeeping, and the ranking
(`Controller.note`, `attention_received`, `top_tokens`); moving is gathering what stays and putting its gradient back.
Each of these functions is timed where the trainer calls it, over `--steps` steps of method `edgetune` with half of the
patches kept (`token_min=0.5`, `token_max=0.5`): of the recipe's last sixth of the blocks over cached features, and of
all blocks. Nothing else should run beside it. One line for each of the two goes to `results/choice_share.jsonl`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import append, lines
from steps import add_options, prepare, step_of

from edgetune.alast.controller import Controller
from edgetune.model.registry import find_spec
from edgetune.model.torch_ops import TorchOps
from edgetune.plan import make_plan
from edgetune.train.lean import engine

NAME = "choice_share"
WARM_UP = 5
# where the trainer looks a function up, and what its time counts as
TIMED: tuple[tuple[Any, str, str], ...] = (
    (TorchOps, "attention_received", "choosing"),
    (Controller, "note", "choosing"),
    (engine.LeanEngine, "_summary", "choosing"),
    (engine, "top_tokens", "choosing"),
    (engine, "gathered", "moving"),
    (engine, "scattered", "moving"),
)
HALF = ("token_min=0.5", "token_max=0.5")


class Stopwatch:
    """Seconds spent in the functions of `TIMED`, by what they count as."""

    def __init__(self) -> None:
        self.spent = {"choosing": 0.0, "moving": 0.0}

    def wrap(self) -> None:
        """Put itself around each of them."""
        for owner, name, kind in TIMED:
            setattr(owner, name, self._timed(getattr(owner, name), kind))

    def _timed(self, function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            found = function(*arguments, **named)
            self.spent[kind] += time.perf_counter() - began
            return found

        return called


def measure(options: argparse.Namespace, watch: Stopwatch, blocks: int) -> dict[str, Any]:
    """Steps that train so many trailing blocks."""
    size = options.image_size or find_spec(options.model).image_size
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), options.model, size)
        plan = make_plan(
            Path(scratch) / "data",
            model=options.model,
            image_size=size,
            batch_size=options.batch_size,
            threads=options.threads,
            workers=0,
            levers=[f"trained_blocks={blocks}", *HALF],
        )
        step = step_of(plan, Path(scratch))
        steps_s, spent = [], {kind: list[float]() for kind in watch.spent}
        for number in range(WARM_UP + options.steps):
            watch.spent = dict.fromkeys(watch.spent, 0.0)
            began = time.perf_counter()
            step()
            if number >= WARM_UP:
                steps_s.append(time.perf_counter() - began)
                for kind, seconds in watch.spent.items():
                    spent[kind].append(seconds)
    shares = {
        kind: statistics.median(part / whole for part, whole in zip(seconds, steps_s, strict=True))
        for kind, seconds in spent.items()
    }
    return {
        "model": options.model,
        "image_size": size,
        "batch_size": options.batch_size,
        "threads": options.threads,
        "trained_blocks": sum(block.trainable for block in plan.blocks),
        "steps": options.steps,
        "step_s": statistics.median(steps_s),
        "shares": shares,
    }


def table() -> str:
    """Markdown: the newest line of each model and number of blocks."""
    newest = {(line["model"], line["trained_blocks"]): line for line in lines(NAME)}
    out = ["| model | trained blocks | ms a step | choosing | moving |", "|---|---:|---:|---:|---:|"]
    for line in newest.values():
        shares = line["shares"]
        out.append(
            f"| `{line['model']}`, {line['image_size']} px, batch {line['batch_size']} | {line['trained_blocks']} |"
            f" {1000 * line['step_s']:.0f} | {shares['choosing']:.1%} | {shares['moving']:.1%} |"
        )
    return "\n".join(out)


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    add_options(running)
    running.add_argument("--steps", type=int, default=40)
    commands.add_parser("table")
    options = parser.parse_args()
    if options.command == "table":
        print(table())
        return
    watch = Stopwatch()
    watch.wrap()
    depth = find_spec(options.model).depth
    for blocks in (max(2, round(depth / 6)), depth):
        found = measure(options, watch, blocks)
        append(NAME, found)
        print({name: round(share, 4) for name, share in found["shares"].items()}, flush=True)


if __name__ == "__main__":
    main()
