"""The training step as ONNX graphs, one for each thing that is done with half a block; see docs/onnx_engine.md.

Weights, what the forward pass saved, and sums of gradients are inputs of a graph and never part of it. So one graph
serves every block, a batch may be passed in parts, a block that is not drawn in a step uses the graph without weight
gradients, and a model's memory is that of the arrays which the caller binds. Batch and number of tokens are open.

What has tokens is kept as rows, (B · N, C); `tokens` (1,) says how many belong to an image. Names:

    x, y, dy, dx        the residual stream and its gradient
    attn.qkv.weight …   weights, by their names within the block
    saved.NAME          what waits for the backward pass, see `edgetune.model.block`; its `x` is the caller's own
    total.NAME          a gradient so far; gradient.NAME: with this part's added
    received            attention that each token received, (B, N)

A caller may give an output the memory of an input where every operator that reads the input comes before the one that
writes the output (`tests/train/onnx/test_graphs.py`): totals and gradients; weights, moments and their successors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from edgetune.model.block import (
    ATTENTION_NAMES,
    LORA_PROJ,
    LORA_QKV,
    MLP_NAMES,
    Shape,
    attention_backward,
    attention_forward,
    mlp_backward,
    mlp_forward,
)
from edgetune.model.onnx_ops import NOTHING, Value
from edgetune.model.spec import ViTSpec
from edgetune.train.onnx.drawing import Drawing
from edgetune.train.onnx.edges import embed, embed_gradients, logits, loss
from edgetune.train.onnx.moves import drop, merge, restore, update

_SAVED = {"attention": ("qkv", "q", "kv", "out", "mean", "rstd"), "mlp": ("pre", "mean", "rstd")}


class _Saved:
    """What a half of a block saves, as results of a graph, or takes, as inputs; see `edgetune.model.block.Saved`."""

    def __init__(self, given: Mapping[str, Value] | None = None) -> None:
        self.values = dict(given or {})

    def put(self, name: str, values: Value) -> None:
        self.values[name] = values

    def take(self, name: str) -> Value:
        return self.values[name]


def attention(spec: ViTSpec, *, save: bool, last: bool, observe: bool) -> Drawing:
    """First half of a block: x to y.

    Args:
        spec: the model.
        save: also give what the backward pass needs.
        last: of the last block, where the classifier reads the first tokens alone.
        observe: also give the attention received.
    """
    drawing, saved = Drawing(), _Saved()
    x = drawing.rows("x", spec.width)
    asking = 1 if spec.class_token else cast(int, x.tokens)  # without a class token, all of them are asked
    found = attention_forward(
        drawing.ops,
        x,
        _weights(drawing, spec, "attention"),
        _shape(spec),
        saved,
        readers=spec.readers if last else None,
        observe=asking if observe else None,
    )
    drawing.result("y", found.y, ["rows_of_y", spec.width])
    if save:
        _save(drawing, saved, "attention")
    if found.received is not None:
        drawing.result("received", found.received, ["batch", "tokens_of_x"])
    return drawing


def attention_gradients(spec: ViTSpec, *, needs: str, last: bool, input_needed: bool) -> Drawing:
    """Backward pass of `attention`.

    Args:
        spec: the model.
        needs: whose gradients are wanted: "weights", "factors" (of adapters) or "nothing".
        last: as in the forward pass.
        input_needed: whether dx is wanted.
    """
    drawing, readers, width = Drawing(), spec.readers if last else None, spec.width
    asked: str | int = "tokens" if readers is None else readers
    x = drawing.rows("x", width)
    given = {"x": x, "out": drawing.rows("saved.out", width, asked), "lse": NOTHING}
    given |= {name: drawing.rows(f"saved.{name}", 1) for name in ("mean", "rstd")}
    if readers is None:
        given["qkv"] = drawing.rows("saved.qkv", 3 * width)
    else:
        given |= {"q": drawing.rows("saved.q", width, asked), "kv": drawing.rows("saved.kv", 2 * width)}
    weights = _weights(drawing, spec, "attention", factors=needs == "factors")
    totals = _totals(drawing, spec, "attention", weights, needs)
    found = attention_backward(
        drawing.ops,
        drawing.rows("dy", width, asked),
        _Saved(given),
        weights,
        _shape(spec),
        needs=totals.keys(),
        totals=totals,
        input_needed=input_needed,
        readers=readers,
    )
    if found.dx is not None:
        drawing.result("dx", found.dx, ["rows_of_tokens", width])
    drawing.gradients(found.gradients)
    return drawing


def mlp(spec: ViTSpec, *, save: bool) -> Drawing:
    """Second half of a block: x to y."""
    drawing, saved = Drawing(), _Saved()
    x = drawing.rows("x", spec.width)
    found = mlp_forward(drawing.ops, x, _weights(drawing, spec, "mlp"), _shape(spec), saved)
    drawing.result("y", found.y, ["rows_of_tokens", spec.width])
    if save:
        _save(drawing, saved, "mlp")
    return drawing


def mlp_gradients(spec: ViTSpec, *, needs: str) -> Drawing:
    """Backward pass of `mlp`; see `attention_gradients`."""
    drawing = Drawing()
    given = {"x": drawing.rows("x", spec.width), "pre": drawing.rows("saved.pre", spec.hidden)}
    given |= {name: drawing.rows(f"saved.{name}", 1) for name in ("mean", "rstd")}
    weights = _weights(drawing, spec, "mlp")
    totals = _totals(drawing, spec, "mlp", weights, needs)
    dy = drawing.rows("dy", spec.width)
    found = mlp_backward(drawing.ops, dy, _Saved(given), weights, _shape(spec), needs=totals.keys(), totals=totals)
    assert found.dx is not None  # asked for above
    drawing.result("dx", found.dx, ["rows_of_tokens", spec.width])
    drawing.gradients(found.gradients)
    return drawing


def _shape(spec: ViTSpec) -> Shape:
    return Shape(spec.heads, spec.norm_eps)


def _weights(drawing: Drawing, spec: ViTSpec, half: str, *, factors: bool = False) -> dict[str, Value]:
    """The weights of half a block as inputs, by their names within it; the factors of adapters where they train."""
    names = MLP_NAMES if half == "mlp" else ATTENTION_NAMES
    shapes = {item.name.split(".", 2)[2]: item.shape for item in spec.block_parameters(0)}
    found = {name: drawing.weight(name, shape) for name, shape in shapes.items() if name in names}
    if factors:
        for inward, outward in (LORA_QKV, LORA_PROJ):
            out, inside = shapes[inward.rpartition(".")[0] + ".weight"]
            drawing.input(inward, ["rank", inside])
            drawing.input(outward, [out, "rank"])
            found |= {
                inward: Value(inward, (cast(int, "rank"), inside)),
                outward: Value(outward, (out, cast(int, "rank"))),
            }
    return found


def _totals(drawing: Drawing, spec: ViTSpec, half: str, weights: Mapping[str, Value], needs: str) -> dict[str, Value]:
    """Gradients so far of what trains, as inputs."""
    factors = {*LORA_QKV, *LORA_PROJ}
    names = {"nothing": set(), "weights": set(weights), "factors": factors & set(weights)}[needs]
    return {name: drawing.weight(f"total.{name}", value.shape) for name, value in weights.items() if name in names}


def _save(drawing: Drawing, saved: _Saved, half: str) -> None:
    for name in _SAVED[half]:
        if name in saved.values:
            value = saved.values[name]
            drawing.result(f"saved.{name}", value, [f"rows_of_{name}", *value.shape])


Builder = Callable[[], Drawing]


def builders(spec: ViTSpec, optimizer: str, lora_scale: float | None = None) -> dict[str, Builder]:
    """Every graph that an engine may ask for, by name.

    Args:
        spec: the model; its depth does not matter.
        optimizer: the update rule.
        lora_scale: of adapters, where they train.
    """
    found: dict[str, Builder] = {
        "embed": lambda: embed(spec),
        "embed.gradients": lambda: embed_gradients(spec),
        "mlp": lambda: mlp(spec, save=False),
        "mlp.save": lambda: mlp(spec, save=True),
        "logits": lambda: logits(spec),
        "loss": lambda: loss(spec),
        "drop": lambda: drop(spec),
        "restore": lambda: restore(spec),
        "update": lambda: update(optimizer),
    }
    trains = ["nothing", "weights" if lora_scale is None else "factors"]
    for needs in ("nothing", "weights"):
        found[f"mlp.gradients.{needs}"] = _bound(mlp_gradients, spec, needs=needs)
    for last in (False, True):
        place = ".last" if last else ""
        found[f"attention{place}"] = _bound(attention, spec, save=False, last=last, observe=False)
        found[f"attention{place}.save"] = _bound(attention, spec, save=True, last=last, observe=False)
        for needs in trains:
            for ends in (
                (False, True) if needs != "nothing" else (False,)
            ):  # the lowest block reached is one that trains
                name = f"attention{place}.gradients.{needs}{'.lowest' if ends else ''}"
                found[name] = _bound(attention_gradients, spec, needs=needs, last=last, input_needed=not ends)
    found["attention.observe"] = _bound(attention, spec, save=False, last=False, observe=True)
    found["attention.save.observe"] = _bound(attention, spec, save=True, last=False, observe=True)
    if lora_scale is not None:
        found["merge"] = lambda: merge(lora_scale)
    return found


def _bound(build: Callable[..., Drawing], spec: ViTSpec, **settings: Any) -> Builder:
    return lambda: build(spec, **settings)
