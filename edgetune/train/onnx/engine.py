"""The engine without torch: the lean trainer's step, its arithmetic in ONNX graphs, its memory in numpy arrays.

The network is passed half a block at a time, and a half in parts of the batch. What enters each half is the residual
stream itself, kept where it lies; what else waits for the backward pass lies beside it in memory that every step writes
over. Backwards, the gradient of a half is summed over the parts, updates its weights, and is gone before the next half
begins. `edgetune.train.lean.engine` is the same in torch, and a run of one can be gone on with by the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetune.data.loader import Batch
from edgetune.model.block import Half
from edgetune.schema import Plan
from edgetune.train.halves import part_behind, parts_of, strip
from edgetune.train.onnx.base import OnnxBase
from edgetune.train.onnx.groups import Floats, Group
from edgetune.train.onnx.memory import Arena
from edgetune.train.onnx.passing import Kept, count, drop_tokens, of_images, pass_block, rows
from edgetune.train.onnx.runtime import Load


class _Trace(NamedTuple):
    """What the forward pass of one block left behind for its backward pass."""

    x: Floats  # that entered it, (B, N, C)
    middle: Floats  # that entered its MLP, (B, N or readers, C)
    kept: dict[Half, Kept]  # what else was saved; empty where it is computed again
    rows: NDArray[np.int64] | None  # of what left it, those that were not dropped; None where none was


class OnnxEngine(OnnxBase):
    """A plain ViT in training; see `OnnxBase`."""

    def __init__(self, plan: Plan, base: Path, load: Load) -> None:
        super().__init__(plan, base, load)
        self._saved, self._again, self._gradient = Arena(), Arena(), Arena()
        self._flat = np.empty(0, np.float32)  # the gradient of whichever group is at it

    def rest(self) -> None:
        """See `Extractor.rest`."""
        self._runtime.shrink()
        for arena in (self._saved, self._again, self._gradient):
            arena.free()
        self._flat = np.empty(0, np.float32)

    def _step(
        self, batch: Batch, trained: tuple[int, ...], learning_rate: float, part: int
    ) -> tuple[float, list[float]]:
        self._saved.reset()
        spec, plan = self.spec, self.plan
        x = np.ascontiguousarray(batch.images, np.float32)
        if x.ndim == 4:
            x = self.frozen.features(x, part)
        lowest = 0 if plan.embeddings_trainable else min(trained, default=spec.depth)
        kept = [float(spec.patches)] * self._lowest
        if 0 < self._lowest < spec.depth:  # above the last block, tokens are read, not dropped
            kept[-1] = float(x.shape[1] - spec.prefix)
        traces: dict[int, _Trace] = {}
        for index in range(self._lowest, spec.depth):
            tokens = x.shape[1]
            if index == lowest:  # kept from here on, while what comes from below lies where gradients will
                x, below = self._saved.empty(x.shape), x
                x[...] = below
            x, trace = self._forward(index, x, part, keep=index >= lowest)
            if trace is not None:
                traces[index] = trace
            kept.append(float((tokens if index == spec.depth - 1 else x.shape[1]) - spec.prefix))
        loss, dx = self._loss(x, batch.labels)
        if not math.isfinite(loss):
            return loss, kept
        self._update(self._groups["head"], learning_rate)
        for index in range(spec.depth - 1, lowest - 1, -1):
            needed = index > lowest or plan.embeddings_trainable
            dx = self._backward(index, dx, traces.pop(index), part, learning_rate, index in trained, needed)
        if plan.embeddings_trainable:
            self._train_embeddings(batch.images, dx, part, learning_rate)
        return loss, kept

    def _forward(self, index: int, x: Floats, part: int, *, keep: bool) -> tuple[Floats, _Trace | None]:
        """Block `index` on the stream x (B, N, C); drops the tokens that the method lets go."""
        last = index == self.spec.depth - 1
        tokens, prefix = x.shape[1], self.spec.prefix
        observe = self.controller is not None and not last and self.controller.needs_attention(index, tokens)
        entered, behind = x, []  # behind each half

        def place(shape: tuple[int, ...]) -> Floats:
            behind.append(self._saved.empty(shape) if keep else self._streams.next(shape))
            return behind[-1]

        before = self._summary(x) if self.controller is not None else None
        kept: dict[Half, Kept] | None = None
        if keep and index not in self._recomputed:
            asked = self._asked(index) or tokens
            kept = {
                "attention": self._room(self._saved, "attention", index, len(x), tokens),
                "mlp": self._room(self._saved, "mlp", index, len(x), asked),
            }
        x, received = pass_block(
            self._runtime, self.spec, x, self._half, index, part, place, observe=observe, kept=kept
        )
        trace = _Trace(entered, behind[0], kept or {}, None) if keep else None
        if self.controller is None or before is None:
            return x, trace
        moved = float(np.square(self._summary(x) - before, dtype=np.float32).sum())
        stay = self.controller.note_moved(index, moved, len(x), tokens - prefix)
        if last or received is None or stay == tokens - prefix:
            return x, trace
        left = place((len(x), prefix + stay, self.spec.width))
        positions = drop_tokens(self._runtime, x, received, stay, left)
        return left, trace._replace(rows=positions) if trace else None

    def _summary(self, x: Floats) -> Floats:
        """What the importance of a block is measured by, (B, C): the class token, or the mean patch."""
        found: Floats = x[:, 0].copy() if self.spec.class_token else x[:, self.spec.prefix :].mean(1)
        return found

    def _room(self, arena: Arena, half: Half, index: int, images: int, tokens: int) -> Kept:
        """Memory for what half a block saves, by name, (B · N, width).

        Args:
            arena: where.
            half: which.
            index: the block.
            images: B.
            tokens: that enter this half, N.
        """
        width, entering = self.spec.width, images * tokens
        if half == "mlp":
            shapes = {"pre": (entering, self.spec.hidden)}
        elif (asked := self._asked(index)) is None:
            shapes = {"qkv": (entering, 3 * width), "out": (entering, width)}
        else:
            shapes = {"q": (images * asked, width), "kv": (entering, 2 * width), "out": (images * asked, width)}
        shapes |= {"mean": (entering, 1), "rstd": (entering, 1)}
        return {key: arena.empty(shape) for key, shape in shapes.items()}

    def _loss(self, x: Floats, labels: NDArray[np.int64]) -> tuple[float, Floats]:
        """The loss of a batch, and its gradient towards the stream; the classifier's is left to `_update`."""
        head = self._groups["head"]
        loss, dx = np.empty((), np.float32), self._streams.next(x.shape)
        outputs = {f"gradient.{name}": view for name, view in self._zero_gradient(head).items()}
        inputs: dict[str, NDArray[Any]] = {
            "x": rows(x),
            "labels": np.ascontiguousarray(labels, np.int64),
            "tokens": count(x.shape[1]),
            "label_smoothing": np.array(self.plan.recipe.label_smoothing, np.float32),
        }
        self._runtime.run("loss", {**inputs, **head.weights}, {**outputs, "loss": loss, "dx": rows(dx)})
        return float(loss), dx

    def _backward(
        self, index: int, dx: Floats, trace: _Trace, part: int, learning_rate: float, trained: bool, input_needed: bool
    ) -> Floats:
        """Backward pass of block `index`, whose weights are updated half by half."""
        if trace.rows is not None:
            below = self._streams.next((len(dx), trace.middle.shape[1], dx.shape[2]))
            inputs: dict[str, NDArray[Any]] = {"dy": rows(dx), "rows": trace.rows, "count": count(len(rows(below)))}
            self._runtime.run("restore", inputs, {"dx": rows(below)})
            dx = below
        asked = ".last" if self._asked(index) is not None else ""
        group = self._groups.get(f"blocks.{index}.mlp") if trained else None
        needs = "nothing" if group is None else "weights"
        mlp_part = part_behind(part, trace.x.shape[1], trace.middle.shape[1])
        dx = self._half_backward(index, "mlp", f"mlp.gradients.{needs}", trace.middle, dx, trace, mlp_part, group)
        if group is not None:
            self._update(group, learning_rate)
        group = self._groups[f"blocks.{index}.attention"] if trained else None
        needs = "nothing" if group is None else "weights" if self._adapters is None else "factors"
        graph = f"attention{asked}.gradients.{needs}{'' if input_needed else '.lowest'}"
        dx = self._half_backward(index, "attention", graph, trace.x, dx, trace, part, group)
        if group is not None:
            self._update(group, learning_rate)
        return dx

    def _half_backward(
        self, index: int, half: Half, graph: str, x: Floats, dy: Floats, trace: _Trace, part: int, group: Group | None
    ) -> Floats:
        """Backward pass of half a block: the gradient towards x is returned, those of a group's weights are summed."""
        weights = self._half(index, half)
        dx = self._streams.next(x.shape)
        totals = {} if group is None else strip(self._zero_gradient(group), f"blocks.{index}.")
        sums = {f"total.{name}": view for name, view in totals.items()}
        outputs = {f"gradient.{name}": view for name, view in totals.items()}
        saved: Kept = {}
        for some in parts_of(len(x), part):
            if trace.kept:
                saved = {key: of_images(values, len(x), some) for key, values in trace.kept[half].items()}
            else:
                saved = self._run_again(index, half, x[some], weights, saved)
            inputs: dict[str, NDArray[Any]] = {f"saved.{key}": values for key, values in saved.items() if key != "y"}
            inputs |= {**weights, **sums, "x": rows(x[some]), "dy": rows(dy[some]), "tokens": count(x.shape[1])}
            self._runtime.run(graph, inputs, {**outputs, "dx": rows(dx[some])})
        return dx

    def _run_again(self, index: int, half: Half, x: Floats, weights: Mapping[str, Floats], former: Kept) -> Kept:
        """Run a half's forward pass again from its input, keeping everything, and its output as `y`.

        Args:
            index: the block.
            half: of it.
            x: (b, N, C), of a part of the batch.
            weights: of the half.
            former: what was kept of the part before, to be written over where this one is as large; empty: nothing.
        """
        images, tokens, width = x.shape
        asked = self._asked(index) if half == "attention" else None
        if not former or len(former["y"]) != images * (asked or tokens):
            self._again.reset()
            former = self._room(self._again, half, index, images, tokens)
            former["y"] = rows(self._again.empty((images, asked or tokens, width)))
        outputs = {key if key == "y" else f"saved.{key}": values for key, values in former.items()}
        name = f"{half}{'' if asked is None else '.last'}.save"
        self._runtime.run(name, {**weights, "x": rows(x), "tokens": count(tokens)}, outputs)
        return former

    def _train_embeddings(self, images: NDArray[np.float32], dx: Floats, part: int, learning_rate: float) -> None:
        group = self._groups["embeddings"]
        sums = dict(self._zero_gradient(group))
        kernel = sums["patch_embed.proj.weight"]
        sums["patch_embed.proj.weight"] = kernel.reshape(len(kernel), -1)
        totals = {f"total.{name}": view for name, view in sums.items()}
        outputs = {f"gradient.{name}": view for name, view in sums.items()}
        for some in parts_of(len(images), part):
            inputs = {**totals, "images": np.ascontiguousarray(images[some]), "dy": rows(dx[some])}
            self._runtime.run("embed.gradients", inputs, outputs)
        self._update(group, learning_rate)

    def _zero_gradient(self, group: Group) -> dict[str, Floats]:
        self._gradient.reset()
        self._flat = self._gradient.empty((group.size,))
        self._flat.fill(0)
        return group.views(self._flat)

    def _update(self, group: Group, learning_rate: float) -> None:
        if group.name not in self._stepped:
            self._stepped.add(group.name)  # before: half an update is better than one and a half
            group.step(self._runtime, self._flat, learning_rate)
