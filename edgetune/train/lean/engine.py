"""The lean engine: blocks with a backward pass of their own, memory spent by the plan.

A step goes through the network block by block, and through a block in parts of the batch (`micro_batch_size` images),
so that what a block needs for itself is bounded by the part, while its weights are read once. The residual stream of
the batch is changed in place, and so are features that come from a cache. Backwards, the gradient of a half of a block
is summed over the parts, updates its weights, and is gone before the next half begins: the sum that one pass over the
whole batch would give, added up in another order.

    below the lowest trained block   nothing is kept; weights may be small or on disk; features may come from a cache
    above it                         what `edgetune.model.block` says is saved, in the plan's precision
    a block not drawn in a step      passes the gradient on
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from edgetune.alast import top_tokens
from edgetune.data.loader import Batch
from edgetune.model.block import Half, Shape, attention_backward, attention_forward, mlp_backward, mlp_forward
from edgetune.model.header import WeightsMetadata
from edgetune.model.registry import find_spec
from edgetune.model.store import WeightsStore, copy_weights
from edgetune.model.torch_ops import TorchOps
from edgetune.model.weights import save_weights
from edgetune.optim.flat import Group
from edgetune.optim.lean import GroupOptimizer
from edgetune.schema import Plan
from edgetune.train.engine import Evaluation, StepReport
from edgetune.train.halves import HalvesEngine, part_behind, parts_of, strip, trained_groups
from edgetune.train.lean.adapters import Adapters
from edgetune.train.lean.arena import Arena
from edgetune.train.lean.below import FrozenPart
from edgetune.train.lean.network import embed_backward, logits_of, loss_and_gradients
from edgetune.train.lean.passing import keep_nothing, pass_block, scale_sums
from edgetune.train.lean.saved import Kept
from edgetune.train.lean.tokens import gathered, scattered
from edgetune.train.scarcity import memory_errors
from edgetune.train.torch_base import TorchBase


class _Trace(NamedTuple):
    """What the forward pass of one block left behind for its backward pass."""

    attention: list[Kept]  # one for each part of the batch
    mlp: list[Kept]
    tokens: int  # that entered it
    positions: Tensor | None  # of the tokens that left it, (B, N'); None where all did

    def keeper(self, keeper: Callable[[], Kept]) -> Callable[[Half], Kept]:
        """For `pass_block`: a new one for each part, noted here."""

        def note(half: Half) -> Kept:
            kept = keeper()
            (self.mlp if half == "mlp" else self.attention).append(kept)
            return kept

        return note


class LeanEngine(HalvesEngine[Tensor], TorchBase):
    """A plain ViT in training; see `edgetune.train.engine.Engine` for what each call promises.

    Args:
        plan: the constraints.
        base: the weights as they were before the run, written by `edgetune.model.store.convert_weights`.
    """

    _groups: dict[str, Group]
    _adapters: Adapters | None
    frozen: FrozenPart

    def __init__(self, plan: Plan, base: Path) -> None:
        super().__init__(plan, find_spec(plan.model).at(plan.image_size, len(plan.data.classes)))
        self._store = WeightsStore(base)
        self._ops = TorchOps(torch.bfloat16 if plan.precision == "bf16" else None)
        self._shape = Shape(self.spec.heads, self.spec.norm_eps)
        self._adapters = Adapters(self.spec, self._trainable, plan.lora) if plan.lora else None
        self._groups = {
            name: Group(name, parameters, self.device) for name, parameters in trained_groups(self.spec, plan).items()
        }
        self._optimizers = {
            name: GroupOptimizer(group, plan.optimizer, plan.optimizer_state, plan.recipe.weight_decay)
            for name, group in self._groups.items()
        }
        for optimizer in self._optimizers.values():
            optimizer.prepare()  # now, so that the state does not settle among a step's temporaries
        self.frozen = FrozenPart(plan, self.spec, self._store, self._embeddings, self.device)
        self._arena, self._passing = Arena(self.device), Arena(self.device)  # the latter: of a half that runs again
        self._gradients = Arena(self.device)  # one gradient, of whichever group is at it
        self._gradient = torch.empty(0)

    def _read(self, name: str, out: Tensor | None = None) -> Tensor:
        if out is not None:
            return self._store.read(name, out)
        return self._store.read(name, torch.empty(self._store.shape(name))).to(self.device)

    # -- a step -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def train_step(self, batch: Batch, learning_rate: float, micro_batch_size: int) -> StepReport:
        """See `Engine.train_step`."""
        return super().train_step(batch, learning_rate, micro_batch_size)

    def _step(
        self, batch: Batch, trained: tuple[int, ...], learning_rate: float, part: int
    ) -> tuple[float, list[float]]:
        self._arena.reset()
        images, labels = self._tensors(batch.images, batch.labels)
        x = self.features(images, part) if images.ndim == 4 else images
        lowest = 0 if self.plan.embeddings_trainable else min(trained, default=self.spec.depth)
        kept = [float(self.spec.patches)] * self._lowest
        if 0 < self._lowest < self.spec.depth:  # above the last block, tokens are read, not dropped
            kept[-1] = float(x.shape[1] - self.spec.prefix)
        traces: dict[int, _Trace] = {}
        for index in range(self._lowest, self.spec.depth):
            x, traces[index] = self._forward(index, x, part, keep=index >= lowest)
            left = traces[index].tokens if index == self.spec.depth - 1 else x.shape[1]
            kept.append(float(left - self.spec.prefix))
        head = self._groups["head"]
        loss, dx, gradients = loss_and_gradients(self.spec, head.weights, x, labels, self.plan.recipe.label_smoothing)
        if not math.isfinite(loss):
            return loss, kept
        del x
        totals = self._zero_gradient(head)
        for name, gradient in gradients.items():
            totals[name].copy_(gradient)
        self._update(head, learning_rate)
        for index in range(self.spec.depth - 1, lowest - 1, -1):
            needed = index > lowest or self.plan.embeddings_trainable
            dx = self._backward(index, dx, traces.pop(index), part, learning_rate, index in trained, needed)
        if self.plan.embeddings_trainable:
            group = self._groups["embeddings"]
            totals = self._zero_gradient(group)
            for start in range(0, len(images), part):
                some = slice(start, start + part)
                embed_backward(self.spec, self._embeddings(), images[some], dx[some], totals)
            self._update(group, learning_rate)
        return loss, kept

    def _forward(self, index: int, x: Tensor, part: int, *, keep: bool) -> tuple[Tensor, _Trace]:
        """Block `index` on the stream x (B, N, C), which is written over; drops the tokens that the method lets go."""
        last = index == self.spec.depth - 1
        tokens, prefix = x.shape[1], self.spec.prefix
        observe = None
        if self.controller is not None and not last and self.controller.needs_attention(index, tokens):
            observe = 1 if self.spec.class_token else tokens
        before = self._summary(x) if self.controller is not None else None
        trace = _Trace([], [], tokens, None)
        x, received = pass_block(
            self._ops,
            x,
            partial(self._half, index),
            self._shape,
            part,
            keeper=trace.keeper(partial(self._keeper, index)) if keep else keep_nothing,
            readers=self._asked(index),
            observe=observe,
        )
        if self.controller is None or before is None:
            return x, trace
        stay = self.controller.note(index, before, self._summary(x), tokens - prefix)
        if last or stay == tokens - prefix:
            return x, trace
        positions = top_tokens(torch.cat(received), stay, prefix)
        return gathered(x, positions), trace._replace(positions=positions)

    def _summary(self, x: Tensor) -> Tensor:
        """What the importance of a block is measured by, (B, 1, C): the class token, or the mean patch."""
        if self.spec.class_token:
            return x[:, :1].clone()
        return x[:, self.spec.prefix :].mean(1, keepdim=True)

    def _keeper(self, index: int) -> Kept:
        only = ("x",) if index in self._recomputed else None
        return Kept(self.plan.saved_precision, self._arena, only)

    def _backward(
        self, index: int, dx: Tensor, trace: _Trace, part: int, learning_rate: float, trained: bool, input_needed: bool
    ) -> Tensor:
        """Backward pass of block `index`, whose weights are updated half by half; dx is written over."""
        ask = self._asked(index)
        if trace.positions is not None:
            dx = scattered(dx, trace.positions, trace.tokens)
        parts = parts_of(len(dx), part)
        mlp_parts = parts if ask is None else parts_of(len(dx), part_behind(part, trace.tokens, ask))
        recompute = index in self._recomputed

        weights = self._half(index, "mlp")
        group = self._groups.get(f"blocks.{index}.mlp") if trained else None
        totals = self._totals(group, index)
        for some, saved in zip(mlp_parts, trace.mlp, strict=True):
            if recompute:
                saved = self._again(saved, lambda x, keep: mlp_forward(self._ops, x, weights, self._shape, keep))
            mlp_backward(
                self._ops, dx[some], saved, weights, self._shape, needs=totals.keys(), totals=totals, unscaled=True
            )
        if group is not None:
            scale_sums("mlp", weights, totals)
            self._update(group, learning_rate)

        weights = self._half(index, "attention")
        group = self._groups[f"blocks.{index}.attention"] if trained else None
        totals = self._totals(group, index)
        below = dx if ask is None else dx.new_empty(len(dx), trace.tokens, dx.shape[2])
        for some, saved in zip(parts, trace.attention, strict=True):
            if recompute:
                saved = self._again(
                    saved, lambda x, keep: attention_forward(self._ops, x, weights, self._shape, keep, readers=ask)
                )
            result = attention_backward(
                self._ops,
                dx[some],
                saved,
                weights,
                self._shape,
                needs=totals.keys(),
                totals=totals,
                input_needed=input_needed,
                readers=ask,
                unscaled=True,
            )
            if ask is not None and result.dx is not None:
                below[some] = result.dx
        if group is not None:
            scale_sums("attention", weights, totals)
            self._update(group, learning_rate)
        return below

    def _again(self, saved: Kept, forward: Callable[[Tensor, Kept], object]) -> Kept:
        """Run a half's forward pass again from its input, keeping everything."""
        self._passing.reset()
        everything = Kept("fp32", self._passing)
        forward(saved.take("x"), everything)
        return everything

    def _totals(self, group: Group | None, index: int) -> dict[str, Tensor]:
        """Where the gradients of a block's half are summed up, by names within the block; nothing where it rests."""
        return {} if group is None else strip(self._zero_gradient(group), f"blocks.{index}.")

    def _zero_gradient(self, group: Group) -> dict[str, Tensor]:
        self._gradients.reset()
        self._gradient = self._gradients.empty((group.size,), torch.float32).zero_()
        return group.views(self._gradient)

    def _update(self, group: Group, learning_rate: float) -> None:
        if group.name not in self._stepped:
            self._stepped.add(group.name)  # before: half an update is better than one and a half
            self._optimizers[group.name].step(self._gradient, learning_rate)

    def features(self, images: Tensor, part: int, *, all_tokens: bool = False) -> Tensor:
        """What enters the lowest block that may train, for images (B, 3, S, S); see `FrozenPart.run`."""
        return self.frozen.features(images, part, all_tokens=all_tokens)

    # -- as an `edgetune.train.features.Extractor` ---------------------------------------------------------------------

    def embed_images(self, images: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """See `HalvesEngine.embed_images`."""
        embedded: NDArray[np.float32] = self.frozen.embed(*self._tensors(images)).cpu().numpy()
        if out is None:
            return embedded
        out[...] = embedded
        return out

    def run_frozen(self, x: NDArray[np.float32], part: int, *, all_tokens: bool) -> NDArray[np.float32]:
        """See `Extractor.run_frozen`."""
        with memory_errors():
            (stream,) = self._tensors(x)
            found: NDArray[np.float32] = self.frozen.run(stream, part, all_tokens=all_tokens).cpu().numpy()
            return found

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(
        self, batches: Iterable[Batch], micro_batch_size: int, stop: Callable[[], bool] = lambda: False
    ) -> Evaluation | None:
        """See `Engine.evaluate`. Nothing is saved meanwhile; steps over cached features do without the frozen part."""
        self.rest()
        found = super().evaluate(self._in_groups(batches, micro_batch_size), micro_batch_size, stop)
        if self.plan.feature_cache is not None:
            self.frozen.free()
        return found

    def rest(self) -> None:
        """See `Extractor.rest`."""
        self._gradient = torch.empty(0)
        for arena in (self._arena, self._passing, self._gradients):
            arena.free()

    def _logits(self, images: Tensor, micro_batch_size: int) -> Tensor:
        """See `TorchBase`: of images, or of their features."""
        self._wake()
        part = micro_batch_size
        x = self.features(images, part, all_tokens=True) if images.ndim == 4 else images
        return torch.cat([self._logits_above(x[start : start + part]) for start in range(0, len(x), part)])

    def _logits_above(self, x: Tensor) -> Tensor:
        """Logits of what enters the lowest block that may train, all tokens kept."""
        for index in range(self._lowest, self.spec.depth):
            x, _ = pass_block(self._ops, x, partial(self._half, index), self._shape, len(x), readers=self._asked(index))
        return logits_of(self.spec, self._groups["head"].weights, x)

    # -- files --------------------------------------------------------------------------------------------------------

    def save_weights(self, path: Path, accuracy: float | None) -> int:
        """See `Engine.save_weights`."""
        metadata = WeightsMetadata.of(self.spec, self.plan.data.classes, val_accuracy=json.dumps(accuracy))
        replaced: Mapping[str, Tensor] = self._trained_weights()
        if self._adapters is not None:
            replaced = self._adapters.merged_weights(self._store, replaced)
        copy_weights(path, self._store, replaced, metadata)
        return path.stat().st_size

    def save_state(self, path: Path, progress: dict[str, Any]) -> int:
        """See `Engine.save_state`. Before the first step nothing but the base is needed, and no weight is written."""
        tensors: dict[str, Tensor] = {}
        if self._awake:
            tensors = {f"parameter/{name}": values for name, values in self._trained_weights().items()}
        steps = {}
        for name, optimizer in self._optimizers.items():
            steps[name] = optimizer.steps
            if optimizer.steps:
                tensors |= {f"optimizer/{name}/{key}": value for key, value in optimizer.state.items()}
        kept = {
            "progress": progress,
            "controller": self.controller.state_dict() if self.controller else None,
            "steps": steps,
            "stepped": sorted(self._stepped),
        }
        save_weights(path, tensors, {"edgetune": kept})
        return path.stat().st_size

    def _take_up(self, base: Path, path: Path) -> dict[str, Any]:
        with safe_open(path, "pt") as stored, torch.no_grad():
            kept: dict[str, Any] = json.loads(stored.metadata()["edgetune"])
            self._stepped = set(kept.get("stepped", ()))
            names = list(stored.keys())
            if not names:  # written before the first step
                return kept
            for name, values in self._trained_weights().items():
                values.copy_(stored.get_tensor(f"parameter/{name}"))
            for name, optimizer in self._optimizers.items():
                at = f"optimizer/{name}/"
                state = {key.removeprefix(at): stored.get_tensor(key) for key in names if key.startswith(at)}
                if state:
                    optimizer.load(state, kept["steps"][name])
        return kept
