"""One block on the residual stream of a batch: half by half, and in each half a part of the batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.model.block import Half
from edgetune.model.spec import ViTSpec
from edgetune.train.halves import part_behind, parts_of
from edgetune.train.onnx.groups import Floats
from edgetune.train.onnx.runtime import Runtime

Weights = Callable[[int, Half], Mapping[str, Floats]]
Place = Callable[[tuple[int, ...]], Floats]  # an array of a shape, of any content
Kept = dict[str, Floats]  # by name, of the whole batch, (B · N, width)


def pass_block(
    runtime: Runtime,
    spec: ViTSpec,
    x: Floats,
    weights: Weights,
    index: int,
    part: int,
    place: Place,
    *,
    observe: bool = False,
    kept: dict[Half, Kept] | None = None,
) -> tuple[Floats, Floats | None]:
    """Forward through both halves of a block.

    Args:
        runtime: runs the graphs.
        spec: the model.
        x: the stream (B, N, C).
        weights: of half a block, by names within it; asked once for each half, and done with before the next.
        index: the block.
        part: images at a time; of the MLP, more where few tokens are left.
        place: gives memory for the stream behind each half.
        observe: also give the attention received.
        kept: where to find what each half saves, for graphs that save; None: nothing is saved.

    Returns:
        The stream behind the block, (B, N or `readers`, C), and the attention received, (B, N).
    """
    last = index == spec.depth - 1
    tokens = x.shape[1]
    asked = spec.readers if last and spec.readers is not None else tokens
    received = np.empty(x.shape[:2], np.float32) if observe else None
    save = ".save" if kept is not None else ""
    name = f"attention{'.last' if last and spec.readers is not None else ''}{save}{'.observe' if observe else ''}"
    graphs: dict[Half, str] = {"attention": name, "mlp": f"mlp{save}"}
    for half, graph in graphs.items():
        ours = weights(index, half)
        y = place((len(x), asked, spec.width))
        of_half = part if half == "attention" else part_behind(part, tokens, asked)
        for some in parts_of(len(x), of_half):
            outputs: dict[str, NDArray[Any]] = {"y": rows(y[some])}
            if received is not None:
                outputs["received"] = received[some]
            if kept is not None:
                outputs |= {f"saved.{key}": of_images(values, len(x), some) for key, values in kept[half].items()}
            inputs: dict[str, NDArray[Any]] = {**ours, "x": rows(x[some]), "tokens": count(x.shape[1])}
            runtime.run(graph, inputs, outputs)
        x = y
    return x, received


def drop_tokens(runtime: Runtime, x: Floats, received: Floats, stay: int, out: Floats) -> NDArray[np.int64]:
    """Fill `out` (B, prefix + `stay`, C) with what stays of x (B, N, C); the rows of x that were kept."""
    kept = np.empty(out.shape[0] * out.shape[1], np.int64)
    inputs: dict[str, NDArray[Any]] = {
        "x": rows(x),
        "received": received,
        "kept": count(stay),
        "tokens": count(x.shape[1]),
    }
    runtime.run("drop", inputs, {"y": rows(out), "rows": kept})
    return kept


def rows(x: Floats) -> Floats:
    """(B, N, C) as (B · N, C), in the same memory."""
    return x.reshape(-1, x.shape[-1])


def of_images(values: Floats, images: int, some: slice) -> Floats:
    """Those rows of (B · N, C) that belong to some of the images."""
    each = len(values) // images
    return values[some.start * each : some.stop * each]


@cache
def count(number: int) -> NDArray[np.int64]:
    """A number as graphs take it; the same array each time."""
    found = np.array([number], np.int64)
    found.setflags(write=False)
    return found
