"""Graphs around the blocks: embedding, classifier and loss, forward and backward; see `edgetune.train.onnx.graphs`."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edgetune.model.block import Shape, attention_forward, mlp_forward
from edgetune.model.onnx_ops import Value
from edgetune.model.spec import ViTSpec
from edgetune.train.onnx.drawing import Drawing

_PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")


def embed(spec: ViTSpec) -> Drawing:
    """Images (B, 3, S, S) to rows."""
    drawing = Drawing()
    kernel = drawing.weight("patch_embed.proj.weight", (spec.width, 3 * spec.patch_size**2))
    drawing.result("y", _embedded(drawing, spec, kernel.name), ["rows_of_tokens", spec.width])
    return drawing


def _embedded(drawing: Drawing, spec: ViTSpec, kernel: str) -> str:
    """Rows of all tokens; the kernel is a matrix here."""
    width = spec.width
    sizes = {item.name: item.shape for item in spec.embedding_parameters()}
    bias = drawing.weight("patch_embed.proj.bias", (width,))
    positions = drawing.weight("pos_embed", sizes["pos_embed"]).name
    shape, add = drawing.graph.shape, drawing.add
    patches = add("Gemm", [_unfold(drawing, spec), kernel, bias.name], "patches", transB=1)
    patches = add("Reshape", [patches, shape(-1, spec.patches, width)], "patches_3d")
    if spec.prefix_positions:
        ends = [shape(spec.prefix_positions), shape(spec.prefix_positions + spec.patches), shape(1)]
        x = add("Add", [patches, add("Slice", [positions, *ends], "patch_positions")], "placed")
    else:
        x = add("Add", [patches, positions], "placed")
    prefix = [drawing.weight(name, sizes[name]).name for name in _PREFIX_TOKENS if name in sizes]
    if prefix:
        tokens = add("Concat", prefix, "prefix", axis=1)
        if spec.prefix_positions:
            ends = [shape(0), shape(spec.prefix_positions), shape(1)]
            tokens = add("Add", [tokens, add("Slice", [positions, *ends], "prefix_positions")], "prefix_placed")
        batch = drawing.graph.add("Shape", ["images"], "batch", start=0, end=1)
        sides = add("Concat", [batch, shape(spec.prefix, width)], "prefix_sides", axis=0)
        x = add("Concat", [add("Expand", [tokens, sides], "prefix_of_all"), x], "tokens", axis=1)
    return add("Reshape", [x, shape(-1, width)], "rows")


def embed_gradients(spec: ViTSpec) -> Drawing:
    """Backward pass of `embed`: the gradients of its weights."""
    drawing, width = Drawing(), spec.width
    shape, add = drawing.graph.shape, drawing.add
    dy = drawing.rows("dy", width, spec.tokens)
    totals = {item.name: drawing.weight(f"total.{item.name}", item.shape) for item in spec.embedding_parameters()}
    kernel = drawing.weight("total.patch_embed.proj.weight", (width, 3 * spec.patch_size**2))
    apart = add("Reshape", [dy.name, shape(-1, spec.tokens, width)], "apart")
    summed = add("ReduceSum", [apart, shape(0)], "summed", keepdims=1)
    found: dict[str, str] = {}

    def part(start: int, stop: int, label: str) -> str:
        return add("Slice", [summed, shape(start), shape(stop), shape(1)], label)

    place = 0
    for name in _PREFIX_TOKENS:
        if name in totals:
            found[name] = part(place, place + totals[name].shape[1], f"d_{name}")
            place += totals[name].shape[1]
    found["pos_embed"] = part(spec.prefix - spec.prefix_positions, spec.tokens, "d_positions")
    ends = [shape(spec.prefix), shape(spec.tokens), shape(1)]
    d_patches = add("Reshape", [add("Slice", [apart, *ends], "d_patches_3d"), shape(-1, width)], "d_patches")
    found["patch_embed.proj.bias"] = add("ReduceSum", [d_patches, shape(0)], "d_bias", keepdims=0)
    for name, gradient in found.items():
        total = totals[name]
        drawing.result(f"gradient.{name}", add("Add", [total.name, gradient], f"{name}_sum"), list(total.shape))
    inputs = [d_patches, _unfold(drawing, spec), kernel.name]
    gradient = add("Gemm", inputs, "d_kernel", transA=1)
    drawing.result("gradient.patch_embed.proj.weight", gradient, list(kernel.shape))
    return drawing


def _unfold(drawing: Drawing, spec: ViTSpec) -> str:
    """Images to the pixels of each patch, (B · P, 3 p²)."""
    grid, side, size = spec.grid, spec.patch_size, spec.image_size
    images = drawing.input("images", ["batch", 3, size, size])
    apart = drawing.add("Reshape", [images, drawing.graph.shape(-1, 3, grid, side, grid, side)], "pixels")
    apart = drawing.add("Transpose", [apart], "pixels_by_patch", perm=[0, 2, 4, 1, 3, 5])
    return drawing.add("Reshape", [apart, drawing.graph.shape(-1, 3 * side * side)], "pixel_rows")


def logits(spec: ViTSpec) -> Drawing:
    """Rows behind the last block to logits (B, classes)."""
    drawing = Drawing()
    drawing.result("logits", _read(drawing, spec)[-1], ["batch", spec.classes])
    return drawing


def loss(spec: ViTSpec) -> Drawing:
    """Rows behind the last block and labels to the mean cross-entropy, and all gradients of it.

    With targets t = (1 - ε) one-hot + ε / classes, the gradient towards the logits is (softmax - t) / B.
    """
    drawing, classes = Drawing(), spec.classes
    ops, add, shape, number = drawing.ops, drawing.add, drawing.graph.shape, drawing.number
    labels = drawing.input("labels", ["batch"], TensorProto.INT64)
    smoothing = drawing.input("label_smoothing", [])
    pooled, read, mean, rstd, answers = _read(drawing, spec)
    weights = {item.name: Value(item.name, item.shape) for item in spec.head_parameters()}
    logs = add("LogSoftmax", [answers], "logs", axis=-1)
    values = drawing.graph.constant("zero_one", np.array([0, 1], np.float32))
    one_hot = add("OneHot", [labels, shape(classes), values], "one_hot", axis=-1)
    sure = add("Mul", [one_hot, add("Sub", [number("one", 1), smoothing], "sure")], "sure_part")
    spread = add("Div", [smoothing, number("classes", classes)], "spread")
    targets = add("Add", [sure, spread], "targets")
    size = add("Cast", [drawing.graph.add("Shape", [labels], "batch", start=0, end=1)], "count", to=TensorProto.FLOAT)
    count = add("Squeeze", [size], "images_in_batch")
    agreement = add("ReduceSum", [add("Mul", [targets, logs], "agreements")], "agreement", keepdims=0)
    drawing.result("loss", add("Div", [add("Neg", [agreement], "surprise"), count], "mean_loss"), [])
    heads = number("heads", len(spec.classifiers))
    difference = add("Sub", [add("Exp", [logs], "softmax"), targets], "difference")
    d_logits = Value(add("Div", [difference, add("Mul", [count, heads], "shares")], "d_logits"), (classes,), 1)
    parts, gradients = [], {}
    for place, head in enumerate(spec.classifiers):
        weight = weights[head + ".weight"]
        gradients[head + ".weight"] = ops.linear_weight(d_logits, read[place])
        gradients[head + ".bias"] = ops.sum_tokens(d_logits)
        parts.append(ops.linear_input(d_logits, weight).name)
    d_read = parts[0]
    if len(parts) > 1:
        d_read = add("Reshape", [add("Concat", parts, "d_read_wide", axis=1), shape(-1, spec.width)], "d_read")
    norm, d_rows = spec.final_norm, Value(d_read, (spec.width,), pooled.tokens)
    gradients[norm + ".weight"] = ops.layer_norm_weight(d_rows, pooled, mean, rstd)
    gradients[norm + ".bias"] = ops.sum_tokens(d_rows)
    nothing = Value(add("Mul", [pooled.name, number("zero", 0)], "nothing"), (spec.width,), pooled.tokens)
    dx = ops.layer_norm_input(d_rows, pooled, mean, rstd, weights[norm + ".weight"], nothing)
    drawing.gradients(gradients)
    drawing.result("dx", dx if spec.readers is not None else _unpool(drawing, spec, dx), ["rows_of_x", spec.width])
    return drawing


def _read(drawing: Drawing, spec: ViTSpec, x: Value | None = None) -> tuple[Value, list[Value], Value, Value, str]:
    """What is read before the final norm, what each classifier reads, the norm's statistics, and the logits."""
    ops, add, shape = drawing.ops, drawing.add, drawing.graph.shape
    weights = {item.name: drawing.weight(item.name, item.shape) for item in spec.head_parameters()}
    if spec.readers is None:
        x = drawing.rows("x", spec.width) if x is None else x
        apart = add("Reshape", [x.name, _sides(drawing, spec, x)], "apart")
        ends = [shape(spec.prefix), shape(2**31 - 1), shape(1)]
        patches = add("Slice", [apart, *ends], "patches_read") if spec.prefix else apart
        pooled = Value(add("ReduceMean", [patches], "pooled", axes=[1], keepdims=0), (spec.width,), 1)
    else:
        pooled = drawing.rows("x", spec.width, spec.readers) if x is None else x
    scale, shift = (weights[f"{spec.final_norm}.{kind}"] for kind in ("weight", "bias"))
    read, mean, rstd = ops.layer_norm(pooled, scale, shift, spec.norm_eps)
    places = [_place(drawing, spec, read, place) for place in range(len(spec.classifiers))]
    answers = [
        ops.linear(place, weights[head + ".weight"], weights[head + ".bias"]).name
        for place, head in zip(places, spec.classifiers, strict=True)
    ]
    if len(answers) > 1:
        both = add("Add", answers, "both")
        answers = [add("Mul", [both, drawing.number("half_of_both", 0.5)], "mean_logits")]
    return pooled, places, mean, rstd, answers[0]


def _place(drawing: Drawing, spec: ViTSpec, read: Value, place: int) -> Value:
    """What one classifier reads, (B, C)."""
    if len(spec.classifiers) == 1:
        return read._replace(tokens=1)
    count, label = len(spec.classifiers), f"place_{place}"
    apart = drawing.add("Reshape", [read.name, drawing.graph.shape(-1, count, spec.width)], f"{label}_apart")
    index = drawing.graph.constant(label, np.array(place, np.int64))
    return Value(drawing.add("Gather", [apart, index], f"{label}_read", axis=1), (spec.width,), 1)


def _unpool(drawing: Drawing, spec: ViTSpec, dx: Value) -> str:
    """The gradient of the patches' mean as rows of all tokens: an equal share for each patch, nothing for the rest."""
    add, shape = drawing.add, drawing.graph.shape
    prefix = shape(spec.prefix)
    patches = add("Sub", ["tokens", prefix], "patch_count")
    share = add("Div", [dx.name, add("Cast", [patches], "patch_count_float", to=TensorProto.FLOAT)], "share")
    share = add("Reshape", [share, shape(-1, 1, spec.width)], "share_3d")
    sides = add("Concat", [shape(1), patches, shape(1)], "patch_sides", axis=0)
    found = add("Expand", [share, sides], "shares_of_patches")
    if spec.prefix:
        pads = drawing.graph.constant("prefix_pads", np.array([0, spec.prefix, 0, 0, 0, 0], np.int64))
        found = add("Pad", [found, pads], "shares_of_all")
    return add("Reshape", [found, shape(-1, spec.width)], "dx_rows")


def _sides(drawing: Drawing, spec: ViTSpec, x: Value) -> str:
    """The shape (B, N, C) of rows."""
    if isinstance(x.tokens, int):
        return drawing.graph.shape(-1, x.tokens, spec.width)
    return drawing.add("Concat", [drawing.graph.shape(-1), "tokens", drawing.graph.shape(spec.width)], "sides", axis=0)


def evaluation(spec: ViTSpec) -> Drawing:
    """Images (B, 3, S, S) and all weights under timm's names to logits (B, classes), in one graph."""
    drawing = Drawing()
    sizes = {item.name: item.shape for item in spec.parameters()}
    kernel = drawing.weight("patch_embed.proj.weight", sizes["patch_embed.proj.weight"])
    flat = drawing.add("Reshape", [kernel.name, drawing.graph.shape(spec.width, -1)], "kernel")
    x = Value(_embedded(drawing, spec, flat), (spec.width,), spec.tokens)
    shape, nothing = Shape(spec.heads, spec.norm_eps), Nothing()
    for index in range(spec.depth):
        at = f"blocks.{index}."
        weights = {name.removeprefix(at): drawing.weight(name, sizes[name]) for name in sizes if name.startswith(at)}
        readers = spec.readers if index == spec.depth - 1 else None
        x = attention_forward(drawing.ops, x, weights, shape, nothing, readers=readers).y
        x = mlp_forward(drawing.ops, x, weights, shape, nothing).y
    drawing.result("logits", _read(drawing, spec, x)[-1], ["batch", spec.classes])
    return drawing


class Nothing:
    """Saves nothing; see `edgetune.model.block.Saved`."""

    def put(self, name: str, values: Value) -> None:
        """Let it go."""

    def take(self, name: str) -> Value:
        """Never called."""
        raise KeyError(name)
