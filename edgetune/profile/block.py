"""One transformer block, timed in the three parts of a training step; run in the child only.

Forward is timed with autograd recording, as training runs it. Passing the gradient on is a forward and backward pass
with frozen weights, less the forward; the weight gradients are the same with trained weights, less that. Bytes are what
autograd asks to keep, counted once per storage, weights excluded.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    torch.manual_seed(0)
    block = Block(spec).to(bench.device).requires_grad_(False)
    weights = dict(block.named_parameters())
    totals = {name: torch.zeros_like(values) for name, values in weights.items()}
    short_floats = lever == "lean-bf16"
    ops, shape = TorchOps(torch.bfloat16 if short_floats else None), Shape(spec.heads, spec.norm_eps)
    x = torch.randn(batch, tokens, spec.width, device=bench.device)
    dy = torch.randn_like(x)

    def forward() -> tuple[SavedExactly, SavedExactly]:
        first, second = SavedExactly(), SavedExactly()
        y = attention_forward(ops, x.clone(), weights, shape, first).y
        mlp_forward(ops, y, weights, shape, second)
        return first, second

    def both(trained: bool) -> None:
        first, second = forward()
        dx = dy.clone()
        for half, saved, names in (
            (mlp_backward, second, MLP_NAMES),
            (attention_backward, first, ATTENTION_NAMES),
        ):
            needs = names & weights.keys() if trained else frozenset()
            mine = {name: totals[name] for name in needs}
            found = half(ops, dx, saved, weights, shape, needs=needs, totals=mine).dx
            assert found is not None  # the input's gradient is wanted
            dx = found

    # the trainer goes without oneDNN where nothing is in bfloat16 (`edgetune.train.torch_engine.start`)
    before = torch.backends.mkldnn.enabled
    if bench.device == "cpu" and not short_floats and torch.backends.mkl.is_available():
        torch.backends.mkldnn.set_flags(False)
    try:
        with torch.no_grad():
            kept = sum(values.nbytes for saved in forward() for values in saved.values())
            first, frozen = bench.time(forward), bench.time(lambda: both(False))
            trained = bench.time(lambda: both(True))
    finally:
        torch.backends.mkldnn.set_flags(before)
    yield from _lines(
        spec, tokens, batch, lever, [(first, 0), (_less(frozen, first), kept), (_less(trained, frozen), 0)]
    )


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
