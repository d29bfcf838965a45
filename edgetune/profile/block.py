"""One transformer block, timed in the three parts of a training step; run in the child only.

Forward is timed with autograd recording, as training runs it. Passing the gradient on is a forward and backward pass
with frozen weights, less the forward; the weight gradients are the same with trained weights, less that. Bytes are what
autograd asks to keep, counted once per storage, weights excluded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


def block_lines(bench: Bench, spec: ViTSpec, tokens: int, batch: int) -> Iterator[Line]:
    """The three parts of a block, as lines for the parent."""
    torch.manual_seed(0)
    block = Block(spec).to(bench.device)
    x = torch.randn(batch, tokens, spec.width, device=bench.device, requires_grad=True)
    gradient = torch.randn_like(x)

    def forward() -> Tensor:
        y: Tensor = block(x)[0]
        return y

    def both() -> None:
        forward().backward(gradient)
        x.grad = None
        for parameter in block.parameters():
            parameter.grad = None

    block.requires_grad_(False)
    passing_bytes = saved_bytes(forward, block)
    first, frozen = bench.time(forward), bench.time(both)
    block.requires_grad_(True)
    all_bytes = saved_bytes(forward, block)
    trained = bench.time(both)
    yield from _lines(
        spec,
        tokens,
        batch,
        "eager",
        [(first, 0), (_less(frozen, first), passing_bytes), (_less(trained, frozen), all_bytes - passing_bytes)],
    )


def lean_block_lines(bench: Bench, spec: ViTSpec, tokens: int, batch: int, lever: str = "lean") -> Iterator[Line]:
    """The same of the block's own forward and backward pass (`edgetune.model.block`), as the lean trainer runs it.

    Args:
        bench: the stopwatch.
        spec: of the block.
        tokens: an image.
        batch: images at a time.
        lever: "lean", or "lean-bf16" for products in bfloat16.
    """
    short_floats = lever == "lean-bf16"
    block = LeanBlock(spec, tokens, batch, bench.device, torch.bfloat16 if short_floats else None)
    with torch.no_grad(), library_of_lean_trainer(bench.device, short_floats=short_floats):
        kept = sum(values.nbytes for saved in block.forward() for values in saved.values())
        first, frozen = bench.time(block.forward), bench.time(lambda: block.both(trained=False))
        trained = bench.time(lambda: block.both(trained=True))
    yield from _lines(
        spec, tokens, batch, lever, [(first, 0), (_less(frozen, first), kept), (_less(trained, frozen), 0)]
    )


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
        self._weights = dict(Block(spec).to(device).requires_grad_(False).named_parameters())
        self._totals = {name: torch.zeros_like(values) for name, values in self._weights.items()}
        self._ops, self._shape = TorchOps(compute), Shape(spec.heads, spec.norm_eps)
        self._x = torch.randn(batch, tokens, spec.width, device=device)
        self._dy = torch.randn_like(self._x)

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


def _lines(spec: ViTSpec, tokens: int, batch: int, lever: str, parts: list[tuple[Timing, int]]) -> Iterator[Line]:
    """Lines of the three parts: how long each took, and what it keeps."""
    for part, (timing, kept) in zip(("forward", "pass_gradient", "weight_gradient"), parts, strict=True):
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


def _less(whole: Timing, part: Timing) -> Timing:
    """A difference of two timings; noise may not make seconds negative, and joules lost in it are unknown, not 0."""
    joules = None if whole.joules is None or part.joules is None else whole.joules - part.joules
    if joules is not None and joules <= 0:
        joules = None
    seconds, best_s = (
        max(of_whole - of_part, 0.02 * of_whole)
        for of_whole, of_part in ((whole.seconds, part.seconds), (whole.best_s, part.best_s))
    )
    return Timing(seconds, joules, best_s)
