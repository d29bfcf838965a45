"""One transformer block, timed in the three parts of a training step; run in the child only.

Forward is timed with autograd recording, as training runs it. Passing the gradient on is a forward and backward pass
with frozen weights, less the forward; the weight gradients are the same with trained weights, less that. The three take
turns, so that a machine that is slower for a while is so for all of them (`Bench.time_parts`). So do several blocks: a
run comes back to one only after all the others, when its weights have left the caches (`Bench.copies`). Bytes are what
autograd asks to keep, counted once per storage, weights excluded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from itertools import cycle

import msgspec
import torch
from torch import Tensor

from edgetune.model.autograd import SavedExactly
from edgetune.model.block import (
    ATTENTION_NAMES,
    MLP_NAMES,
    Shape,
    attention_backward,
    attention_forward,
    mlp_backward,
    mlp_forward,
)
from edgetune.model.spec import ViTSpec
from edgetune.model.torch_ops import TorchOps
from edgetune.model.vit import Block
from edgetune.profile.probes import Bench, Line, Timing
from edgetune.schema import BlockCost

_LEAST_COPIES = 3  # so that the three parts, which take turns, each find a block that was not used just now


def block_lines(bench: Bench, spec: ViTSpec, tokens: int, batch: int, lever: str = "eager") -> Iterator[Line]:
    """The three parts of a block, as lines for the parent."""
    torch.manual_seed(0)
    block = Block(spec).to(bench.device)
    others = [deepcopy(block) for _ in range(1, bench.copies(_weight_bytes(spec), _LEAST_COPIES))]
    turns = cycle([block, *others])
    x = torch.randn(batch, tokens, spec.width, device=bench.device, requires_grad=True)
    gradient = torch.randn_like(x)

    def forward(block: Block) -> Tensor:
        y: Tensor = block(x)[0]
        return y

    def both(trained: bool) -> None:
        block = next(turns).requires_grad_(trained)
        forward(block).backward(gradient)
        x.grad = None
        for parameter in block.parameters():
            parameter.grad = None

    block.requires_grad_(False)
    passing_bytes = saved_bytes(lambda: forward(block), block)
    block.requires_grad_(True)
    all_bytes = saved_bytes(lambda: forward(block), block)
    kept = (0, passing_bytes, all_bytes - passing_bytes)
    timings = bench.time_parts(lambda: forward(next(turns)), lambda: both(False), lambda: both(True))
    yield from _lines(spec, tokens, batch, lever, timings, kept)


def lean_block_lines(bench: Bench, spec: ViTSpec, tokens: int, batch: int, lever: str = "lean") -> Iterator[Line]:
    """The same of the block's own forward and backward pass (`edgetune.model.block`), as the lean trainer runs it.

    Args:
        bench: the stopwatch.
        spec: of the block.
        tokens: an image.
        batch: images at a time.
        lever: "lean", "lean-bf16" for products in bfloat16, or "lean-tight" in a process with the lean allocator.
    """
    short_floats = lever == "lean-bf16"
    block = LeanBlock(spec, tokens, batch, bench.device, torch.bfloat16 if short_floats else None)
    others = [block.another() for _ in range(1, bench.copies(_weight_bytes(spec), _LEAST_COPIES))]
    turns = cycle([block, *others])
    with torch.no_grad(), library_of_lean_trainer(bench.device, short_floats=short_floats):
        kept = sum(values.nbytes for saved in block.forward() for values in saved.values())
        timings = bench.time_parts(
            lambda: next(turns).forward(),
            lambda: next(turns).both(trained=False),
            lambda: next(turns).both(trained=True),
        )
    yield from _lines(spec, tokens, batch, lever, timings, (0, kept, 0))


def _weight_bytes(spec: ViTSpec) -> int:
    return 4 * sum(parameter.count for parameter in spec.block_parameters(0))


class LeanBlock:
    """One block of random weights with an input, run as the lean trainer runs it; call it without autograd.

    Args:
        spec: of the block.
        tokens: an image.
        batch: images at a time.
        device: "cpu" or "cuda".
        compute: type of its products; None is fp32.
    """

    def __init__(self, spec: ViTSpec, tokens: int, batch: int, device: str, compute: torch.dtype | None) -> None:
        torch.manual_seed(0)
        self._weights: dict[str, Tensor] = dict(Block(spec).to(device).requires_grad_(False).named_parameters())
        self._totals = {name: torch.zeros_like(values) for name, values in self._weights.items()}
        self._ops, self._shape = TorchOps(compute), Shape(spec.heads, spec.norm_eps)
        self._x = torch.randn(batch, tokens, spec.width, device=device)
        self._dy = torch.randn_like(self._x)

    def another(self) -> LeanBlock:
        """One with weights of its own; the gradients' place and the input are the same, as they are in a run."""
        other = copy(self)
        other._weights = {name: values.clone() for name, values in self._weights.items()}
        return other

    def forward(self) -> tuple[SavedExactly, SavedExactly]:
        """What its halves keep."""
        first, second = SavedExactly(), SavedExactly()
        y = attention_forward(self._ops, self._x.clone(), self._weights, self._shape, first).y
        mlp_forward(self._ops, y, self._weights, self._shape, second)
        return first, second

    def both(self, *, trained: bool) -> None:
        """Forward and backward pass, the latter with gradients of the weights where they are trained."""
        first, second = self.forward()
        dx = self._dy.clone()
        for half, saved, names in (
            (mlp_backward, second, MLP_NAMES),
            (attention_backward, first, ATTENTION_NAMES),
        ):
            needs = names & self._weights.keys() if trained else frozenset()
            mine = {name: self._totals[name] for name in needs}
            found = half(self._ops, dx, saved, self._weights, self._shape, needs=needs, totals=mine).dx
            assert found is not None  # the input's gradient is wanted
            dx = found


@contextmanager
def library_of_lean_trainer(device: str, *, short_floats: bool) -> Iterator[None]:
    """Without oneDNN where nothing is in bfloat16, as `edgetune.train.torch_engine.start` has it."""
    before = torch.backends.mkldnn.enabled
    if device == "cpu" and not short_floats and torch.backends.mkl.is_available():
        torch.backends.mkldnn.set_flags(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before)


def _lines(
    spec: ViTSpec, tokens: int, batch: int, lever: str, timings: Sequence[Timing], bytes_kept: Sequence[int]
) -> Iterator[Line]:
    """Lines of the three parts: how long each took, and what it keeps."""
    parts = ("forward", "pass_gradient", "weight_gradient")
    for part, timing, kept in zip(parts, timings, bytes_kept, strict=True):
        cost = BlockCost(
            width=spec.width,
            heads=spec.heads,
            tokens=tokens,
            batch_size=batch,
            lever=lever,
            part=part,  # type: ignore[arg-type]
            seconds=timing.seconds,
            saved_bytes=kept,
            energy_j=timing.joules,
        )
        yield {"block": msgspec.to_builtins(cost)}


def saved_bytes(forward: object, module: torch.nn.Module) -> int:
    """Bytes autograd keeps for the backward pass of `forward`, each storage once, the module's weights excluded."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        # handing back the tensor itself would tie the graph into a cycle that outlives it
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()  # type: ignore[operator]
    del output
    return sum(kept.values())
