"""Graphs that drop tokens, merge adapters and move weights; see `edgetune.train.onnx.graphs`."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edgetune.model.spec import ViTSpec
from edgetune.optim.rules import BETAS, EPSILON, MOMENTUM
from edgetune.train.onnx.drawing import Drawing


def drop(spec: ViTSpec) -> Drawing:
    """The prefix and the `kept` (1,) patches that received most attention, in falling order, and their rows in x."""
    drawing = Drawing()
    add, shape = drawing.add, drawing.graph.shape
    x = drawing.rows("x", spec.width)
    received = drawing.input("received", ["batch", "tokens_of_x"])
    kept = drawing.input("kept", [1], TensorProto.INT64)
    ends = [shape(spec.prefix), shape(2**31 - 1), shape(1)]
    patches = add("Slice", [received, *ends], "received_by_patches")
    best = drawing.graph.add("TopK", [patches, kept], "best", 2, axis=1, largest=1, sorted=1)[1]
    number, zero, one = (drawing.graph.constant(name, np.array(value, np.int64)) for name, value in _COUNTING.items())
    positions = add("Add", [best, drawing.graph.constant("first", np.array(spec.prefix, np.int64))], "positions")
    size = drawing.graph.add("Shape", ["received"], "batch", start=0, end=1)
    if spec.prefix:
        always = drawing.graph.constant("always", np.arange(spec.prefix, dtype=np.int64)[None])
        sides = add("Concat", [size, number], "always_sides", axis=0)
        positions = add("Concat", [add("Expand", [always, sides], "always_of_all"), positions], "all_positions", axis=1)
    images = add("Range", [zero, add("Squeeze", [size], "images"), one], "image_numbers")
    starts = add(
        "Mul", [images, add("Squeeze", [x.tokens if isinstance(x.tokens, str) else ""], "tokens_0d")], "starts"
    )
    rows = add("Add", [positions, add("Reshape", [starts, shape(-1, 1)], "starts_2d")], "rows_2d")
    rows = add("Reshape", [rows, shape(-1)], "rows_1d")
    drawing.result("y", add("Gather", [x.name, rows], "kept_rows", axis=0), ["rows_of_kept", spec.width])
    drawing.result("rows", rows, ["rows_of_kept"], TensorProto.INT64)
    return drawing


_COUNTING = {"number_of_sides": [1], "zero": 0, "one": 1}


def restore(spec: ViTSpec) -> Drawing:
    """Undo `drop` for a gradient: dy to as many rows as `like` has, zeros where a token was dropped."""
    drawing = Drawing()
    drawing.input("dy", ["rows_of_kept", spec.width])
    drawing.input("rows", ["rows_of_kept"], TensorProto.INT64)
    drawing.input("count", [1], TensorProto.INT64)
    sides = drawing.add("Concat", ["count", drawing.graph.shape(spec.width)], "sides", axis=0)
    zeros = drawing.add("ConstantOfShape", [sides], "zeros")
    places = drawing.add("Reshape", ["rows", drawing.graph.shape(-1, 1)], "places")
    dx = drawing.add("ScatterND", [zeros, places, "dy"], "restored")
    drawing.result("dx", dx, ["rows_of_x", spec.width])
    return drawing


def merge(scale: float) -> Drawing:
    """A matrix with its adapter's product added, and the factors as `attention_gradients` wants them."""
    drawing = Drawing()
    drawing.input("weight", ["out", "in"])
    drawing.input("lora_a", ["rank", "in"])
    drawing.input("lora_b", ["out", "rank"])
    merged = drawing.add("Gemm", ["lora_b", "lora_a", "weight"], "product", alpha=scale)
    drawing.result("merged", merged, ["out", "in"])
    factor = drawing.number("scale", scale)
    for name, sides in (("lora_a", ["rank", "in"]), ("lora_b", ["out", "rank"])):
        drawing.result(f"scaled.{name}", drawing.add("Mul", [name, factor], f"{name}_scaled"), sides)
    return drawing


def update(kind: str) -> Drawing:
    """An optimizer's step on a stretch of weights: `weights` and `moments` to `new.weights` and `new.moments`.

    `learning_rate`, `step` (from 1 on) and `decay` are scalars. D. Kingma and J. Ba, arXiv 1412.6980; I. Loshchilov and
    F. Hutter, arXiv 1711.05101.
    """
    drawing = Drawing()
    add, number = drawing.add, drawing.number
    weights, gradient = drawing.input("weights", ["n"]), drawing.input("gradient", ["n"])
    rate, decay = drawing.input("learning_rate", []), drawing.input("decay", [])
    if kind != "adamw":
        gradient = add("Add", [gradient, add("Mul", [weights, decay], "pull")], "pulled")
    if kind in ("sgd", "sgd-plain"):
        if kind == "sgd":
            drawing.input("momentum", ["n"])
            gradient = add("Add", [add("Mul", ["momentum", number("mu", MOMENTUM)], "fading"), gradient], "moved")
            drawing.result("new.momentum", gradient, ["n"])
        drawing.result("new.weights", add("Sub", [weights, add("Mul", [gradient, rate], "by")], "after"), ["n"])
        return drawing
    step = add("Cast", [drawing.input("step", [])], "step_64", to=TensorProto.DOUBLE)
    moments = []
    for name, beta, term in zip(
        ("first", "second"), BETAS, (gradient, add("Mul", [gradient, gradient], "square")), strict=True
    ):
        drawing.input(name, ["n"])
        fading = add("Mul", [name, number(f"{name}_beta", beta)], f"{name}_fading")
        fresh = add("Mul", [term, number(f"{name}_rest", 1 - beta)], f"{name}_fresh")
        moments.append(add("Add", [fading, fresh], f"{name}_moved"))
        drawing.result(f"new.{name}", moments[-1], ["n"])
    # corrections for moments that start at zero, in double precision: 1 - 0.999 has few digits left in single
    one = number("one_64", 1, np.float64)
    gone = [
        add(
            "Sub",
            [one, add("Pow", [number(f"{name}_beta_64", beta, np.float64), step], f"{name}_power")],
            f"{name}_gone",
        )
        for name, beta in zip(("first", "second"), BETAS, strict=True)
    ]
    root = add("Cast", [add("Sqrt", [gone[1]], "root_64")], "root", to=TensorProto.FLOAT)
    speed = add("Div", [rate, add("Cast", [gone[0]], "first_correction", to=TensorProto.FLOAT)], "speed")
    below = add(
        "Add",
        [add("Div", [add("Sqrt", [moments[1]], "deviation"), root], "corrected"), number("eps", EPSILON)],
        "below",
    )
    by = add("Mul", [add("Div", [moments[0], below], "direction"), speed], "by")
    if kind == "adamw":
        stay = add("Sub", [number("one_32", 1), add("Mul", [rate, decay], "shrinks")], "stay")
        weights = add("Mul", [weights, stay], "decayed")
    drawing.result("new.weights", add("Sub", [weights, by], "after"), ["n"])
    return drawing
