"""What trainers do with tensors besides a block's arithmetic, timed with their own code; run in the child only.

Packing and updates are timed on few numbers and on many: the first says what starting their operations takes, both
together what a number takes. Blocks are updated in turns, as a run does it: what each needs is not in caches. Weights
are made ready one matrix at a time, which are never few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import cycle
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from edgetune.model.block import half_of
from edgetune.model.packing import Packed, pack
from edgetune.model.spec import ViTSpec
from edgetune.model.vit import Block
from edgetune.optim.flat import Group
from edgetune.optim.fused import Optimizer
from edgetune.optim.lean import GroupOptimizer
from edgetune.profile.probes import Bench, Line
from edgetune.schema import TensorCost

_KEPT_SHAPES = ((1, 17, 192), (8, 197, 768))  # an image of a small model, the inside of a batch of a larger one
_READY_SHAPE = (3072, 768)  # of a matrix
_UPDATED_BYTES = 16  # of a number: itself, its gradient and Adam's two
_LEARNING_RATE, _WEIGHT_DECAY = 1e-4, 0.05
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def tensor_lines(bench: Bench, blocks: Sequence[ViTSpec]) -> Iterator[Iterator[Line]]:
    """All of them, those that recipes use by default first; no more than those where it should be quick.

    Args:
        bench: the stopwatch.
        blocks: whose weights are updated, a small one and a large one.
    """
    yield _kept(bench, "int8")
    yield _kept(bench, "fp32")
    yield _updated_lean(bench, blocks, "adamw", "factored")
    yield _updated_lean(bench, blocks, "adamw", "fp32")
    yield _updated_under_autograd(bench, blocks, "adamw")
    if bench.quick:
        return
    yield _kept(bench, "bf16")
    yield _kept(bench, "int4")
    yield _readied(bench, "int8", "fp32")
    yield _readied(bench, "bf16", "fp32")
    yield _readied(bench, "int8", "bf16")
    yield _readied(bench, "fp32", "bf16")
    yield _updated_lean(bench, blocks, "adamw", "int8")
    yield _updated_lean(bench, blocks, "sgd", "fp32")
    yield _updated_lean(bench, blocks, "sgd-plain", "fp32")
    yield _updated_under_autograd(bench, blocks, "sgd")


def _kept(bench: Bench, precision: Literal["fp32", "bf16", "int8", "int4"]) -> Iterator[Line]:
    """Tensors put away in a saved precision and read back."""
    torch.manual_seed(0)
    empty: Any = cache(partial(torch.empty, device=bench.device))  # the same memory every time, as the trainer has it
    for shape in _KEPT_SHAPES:
        values = torch.randn(shape, device=bench.device)
        timing = bench.time(lambda values=values: pack(values, precision, empty).unpack(), bench.tensor_s)  # type: ignore[misc]
        yield _line("keep", precision, values.numel(), timing.seconds)


def _readied(bench: Bench, kept: Literal["fp32", "bf16", "int8"], wanted: Literal["fp32", "bf16"]) -> Iterator[Line]:
    """A frozen matrix brought from the precision it is stored in to the arithmetic's."""
    torch.manual_seed(0)
    values = torch.randn(_READY_SHAPE, device=bench.device)
    stored: Tensor | Packed = pack(values, "int8") if kept == "int8" else values.to(_TYPES[kept])
    ready = torch.empty(_READY_SHAPE, dtype=_TYPES[wanted], device=bench.device)
    with torch.no_grad():
        timing = bench.time(
            lambda: stored.unpack_into(ready) if isinstance(stored, Packed) else ready.copy_(stored), bench.tensor_s
        )
    yield _line("ready", f"{kept}/{wanted}", values.numel(), timing.seconds)


def _updated_lean(
    bench: Bench,
    blocks: Sequence[ViTSpec],
    kind: Literal["adamw", "sgd", "sgd-plain"],
    state: Literal["fp32", "int8", "factored"],
) -> Iterator[Line]:
    """Updates of a block's weights in the lean trainer, half by half."""
    for spec in blocks:
        torch.manual_seed(0)
        parameters = [parameter for parameter in spec.parameters() if parameter.name.startswith("blocks.0.")]
        device = torch.device(bench.device)
        numbers = sum(parameter.count for parameter in parameters)
        gradients: dict[str, Tensor] = {}  # one place for all blocks, as in a run
        turns = []
        for _ in range(bench.copies(_UPDATED_BYTES * numbers)):
            updates = []
            for half in ("attention", "mlp"):
                group = Group(half, [each for each in parameters if half_of(each.name) == half], device)
                if half not in gradients:  # drawn in a tenth of a normal one's time
                    gradients[half] = torch.empty_like(group.values).uniform_(-1, 1)
                group.values.copy_(gradients[half]).mul_(0.02)
                updates.append((GroupOptimizer(group, kind, state, _WEIGHT_DECAY), gradients[half]))
            turns.append(updates)

        def update(turns: Iterator[list[tuple[GroupOptimizer, Tensor]]] = cycle(turns)) -> None:  # noqa: B008
            for optimizer, gradient in next(turns):
                optimizer.step(gradient, _LEARNING_RATE)

        for _ in turns:  # a first update makes the state
            update()
        timing = bench.time(update, bench.tensor_s)
        del update, turns  # before the next block's are made
        lever = f"lean/{kind}/{state}" if kind == "adamw" else f"lean/{kind}"
        yield _line("update", lever, numbers, timing.seconds)


def _updated_under_autograd(bench: Bench, blocks: Sequence[ViTSpec], kind: Literal["adamw", "sgd"]) -> Iterator[Line]:
    """The same under autograd."""
    for spec in blocks:
        torch.manual_seed(0)
        numbers = sum(parameter.count for parameter in spec.block_parameters(0))
        optimizers = []
        for _ in range(bench.copies(_UPDATED_BYTES * numbers)):
            parameters = list(Block(spec).to(bench.device).named_parameters(prefix="blocks.0"))
            for _, parameter in parameters:
                parameter.grad = torch.empty_like(parameter).uniform_(-1, 1)
            optimizers.append(Optimizer(kind, parameters, _WEIGHT_DECAY))

        def update(turns: Iterator[Optimizer] = cycle(optimizers)) -> None:  # noqa: B008
            next(turns).step(_LEARNING_RATE)

        for _ in optimizers:
            update()
        timing = bench.time(update, bench.tensor_s)
        del update, optimizers
        yield _line("update", f"autograd/{kind}", numbers, timing.seconds)


def _line(operation: Literal["keep", "update", "ready"], lever: str, numbers: int, seconds: float) -> Line:
    cost = TensorCost(operation=operation, lever=lever, numbers=numbers, seconds=seconds)
    return {"tensor": msgspec.to_builtins(cost)}
