"""An ONNX engine but for the training step: its parts, evaluation, and what it reads from and leaves in files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from edgetune.data.loader import Batch
from edgetune.errors import InputError
from edgetune.model.arrayfile import ArrayStore, copy_arrays, write_arrays
from edgetune.model.block import Half
from edgetune.model.header import WeightsMetadata
from edgetune.model.registry import find_spec
from edgetune.plan.lean_bill import group_size
from edgetune.schema import Plan
from edgetune.train.engine import Evaluation
from edgetune.train.halves import HalvesEngine, trained_groups
from edgetune.train.onnx.adapters import Adapters
from edgetune.train.onnx.answers import log_softmax
from edgetune.train.onnx.frozen import FrozenBlocks, FrozenPart
from edgetune.train.onnx.groups import Floats, Group, strip
from edgetune.train.onnx.memory import Streams
from edgetune.train.onnx.passing import count, pass_block, rows
from edgetune.train.onnx.runtime import Load, Runtime
from edgetune.train.scarcity import memory_errors


class OnnxBase(HalvesEngine, ABC):
    """See the module, and `edgetune.train.engine.Engine` for what each call promises.

    Args:
        plan: the constraints.
        base: the weights as they were before the run, under timm's names.
        load: gives the graphs (`edgetune.train.onnx.cache`).
    """

    def __init__(self, plan: Plan, base: Path, load: Load) -> None:
        super().__init__(plan, find_spec(plan.model).at(plan.image_size, len(plan.data.classes)))
        self._runtime = Runtime(load, plan.threads)
        self._store = ArrayStore(base)
        self._adapters = Adapters(self.spec, self._trainable, plan.lora, self._runtime) if plan.lora else None
        self._groups = {
            name: Group(name, parameters, plan.optimizer, plan.recipe.weight_decay)
            for name, parameters in trained_groups(self.spec, plan).items()
        }
        self._streams = Streams()
        self.frozen = FrozenPart(
            self.spec,
            FrozenBlocks(self._store, self._resting(), plan.frozen_weights == "disk"),
            self._embeddings,
            self._runtime,
            self._streams,
            lowest=self._lowest,
            stay=plan.blocks[self._lowest - 1].keep_max_tokens if self._lowest else self.spec.patches,
        )

    def _resting(self) -> list[int]:
        """Blocks whose own weights never train."""
        return [block.index for block in self.plan.blocks if not block.trainable or self.plan.lora]

    def _read_trained(self) -> None:
        for group in self._groups.values():
            for name, values in group.weights.items():
                if name in self._store.names:  # adapters are not
                    self._store.read_array(name, values)
        if self._adapters is not None:
            self._adapters.draw(self._trained_weights(), self.plan.seed)

    def _embeddings(self) -> Mapping[str, Floats]:
        if self.plan.embeddings_trainable:
            self._wake()
            return self._groups["embeddings"].weights
        return {
            parameter.name: self._store.read_array(parameter.name, np.empty(parameter.shape, np.float32))
            for parameter in self.spec.embedding_parameters()
        }

    def _half(self, index: int, half: Half) -> Mapping[str, Floats]:
        """Weights of half a block by their names within the block."""
        group = self._groups.get(f"blocks.{index}.{half}")
        ours = None if group is None else strip(group.weights, f"blocks.{index}.")
        if self._adapters is None:
            return self.frozen.blocks.half(index, half) if ours is None else ours
        weights = self.frozen.blocks.half(index, half)
        return weights if ours is None else self._adapters.corrected(weights, ours)

    @abstractmethod
    def _rest(self) -> None:
        """Give back memory that only training needs."""

    # -- as an `edgetune.train.features.Extractor` ---------------------------------------------------------------------

    def embed_images(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Extractor.embed_images`."""
        return self.frozen.embed(images)

    def run_frozen(self, x: NDArray[np.float32], part: int, *, all_tokens: bool) -> NDArray[np.float32]:
        """See `Extractor.run_frozen`; the next call writes over what is returned."""
        return self.frozen.run(x, part, all_tokens=all_tokens)

    def free_frozen(self) -> None:
        """See `Extractor.free_frozen`."""
        self.frozen.free()

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(
        self, batches: Iterable[Batch], micro_batch_size: int, stop: Callable[[], bool] = lambda: False
    ) -> Evaluation | None:
        """See `Engine.evaluate`. Nothing is saved meanwhile; steps over cached features do without the frozen part."""
        self._rest()
        loss, found = 0.0, Evaluation(0.0, [], [], [], [])
        for batch in self._in_groups(batches, micro_batch_size):
            if stop():
                return None
            with memory_errors():
                logs = log_softmax(self._logits(batch.images, micro_batch_size))
            loss -= float(logs[np.arange(len(logs)), batch.labels].sum())
            found.indices.extend([] if batch.indices is None else batch.indices.tolist())
            found.labels.extend(batch.labels.tolist())
            found.predictions.extend(logs.argmax(1).tolist())
            found.confidences.extend(np.exp(logs.max(1)).tolist())
        if self.plan.feature_cache is not None:
            self.frozen.free()
        return found._replace(loss=loss / max(1, len(found.labels)))

    def _in_groups(self, batches: Iterable[Batch], part: int) -> Iterator[Batch]:
        """Features of many images for batches of a few, since each group reads the weights of all frozen blocks."""
        size = group_size(self.spec, part) if self.plan.feature_cache is not None else self.plan.batch_size
        stream, filled = np.empty(0, np.float32), 0
        waiting: list[Batch] = []
        for batch in batches:
            if batch.images.ndim != 4 or not self._lowest:
                yield batch
                continue
            number = len(batch.labels)
            if waiting and filled + number > len(stream):
                yield self._passed(waiting, stream[:filled], part)
                filled = 0
            if not len(stream):
                stream = np.empty((max(size, number), self.spec.tokens, self.spec.width), np.float32)
            with memory_errors():
                self.frozen.embed(batch.images, stream[filled : filled + number])
            waiting.append(batch._replace(images=batch.images[:0].copy()))  # a view would keep them all
            filled += number
        if waiting:
            yield self._passed(waiting, stream[:filled], part)

    def _passed(self, waiting: list[Batch], stream: Floats, part: int) -> Batch:
        """What enters the lowest block that may train, for the embedded images of these batches, which are let go."""
        labels = np.concatenate([batch.labels for batch in waiting])
        indices = [batch.indices for batch in waiting if batch.indices is not None]
        waiting.clear()
        features = self.frozen.run(stream, part, all_tokens=True)
        return Batch(features, labels, np.concatenate(indices) if indices else None)

    def _logits(self, images: NDArray[np.float32], part: int) -> Floats:
        """Logits of images (B, 3, S, S), or of their features (B, N, C); all tokens kept."""
        self._wake()
        x = np.ascontiguousarray(images, np.float32)
        if x.ndim == 4:
            x = self.frozen.features(x, part, all_tokens=True)
        for index in range(self._lowest, self.spec.depth):
            x, _ = pass_block(self._runtime, self.spec, x, self._half, index, part, self._streams.next)
        logits = np.empty((len(x), self.spec.classes), np.float32)
        inputs: dict[str, NDArray[Any]] = {"x": rows(x), "tokens": count(x.shape[1]), **self._groups["head"].weights}
        self._runtime.run("logits", inputs, {"logits": logits})
        return logits

    # -- files --------------------------------------------------------------------------------------------------------

    def _trained_weights(self) -> dict[str, Floats]:
        self._wake()
        return {name: values for group in self._groups.values() for name, values in group.weights.items()}

    def save_weights(self, path: Path, accuracy: float | None) -> int:
        """See `Engine.save_weights`."""
        metadata = WeightsMetadata.of(self.spec, self.plan.data.classes, val_accuracy=json.dumps(accuracy))
        replaced: Mapping[str, Floats] = self._trained_weights()
        if self._adapters is not None:
            replaced = self._adapters.merged_weights(self._store, replaced)
        copy_arrays(path, self._store, replaced, metadata.strings())
        return path.stat().st_size

    def save_base(self, path: Path) -> int:
        """See `Engine.save_base`: it was there before the engine."""
        return path.stat().st_size

    def save_state(self, path: Path, progress: dict[str, Any]) -> int:
        """See `Engine.save_state`. Before the first step nothing but the base is needed, and no weight is written."""
        arrays: dict[str, NDArray[Any]] = {}
        if self._awake:
            arrays = {f"parameter/{name}": values for name, values in self._trained_weights().items()}
        for name, group in self._groups.items():
            if group.steps:
                arrays |= {f"optimizer/{name}/{key}": values for key, values in group.state.items()}
        kept = {
            "progress": progress,
            "controller": self.controller.state_dict() if self.controller else None,
            "steps": {name: group.steps for name, group in self._groups.items()},
        }
        write_arrays(path, arrays, {"edgetune": json.dumps(kept, ensure_ascii=False)})
        return path.stat().st_size

    def load_state(self, base: Path, path: Path) -> dict[str, Any]:
        """See `Engine.load_state`."""
        try:
            kept = self._take_up(path)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path.parent} does not hold this run's state ({error}); start anew.") from error
        if self.controller:
            self.controller.load_state_dict(kept["controller"])
        progress: dict[str, Any] = kept["progress"]
        return progress

    def _take_up(self, path: Path) -> dict[str, Any]:
        with ArrayStore(path) as stored:
            kept: dict[str, Any] = json.loads(stored.header.metadata["edgetune"])
            if not stored.names:  # written before the first step
                return kept
            for name, values in self._trained_weights().items():
                stored.read_array(f"parameter/{name}", values)
            for name, group in self._groups.items():
                at = f"optimizer/{name}/"
                state = {key.removeprefix(at): stored.read_array(key) for key in stored.names if key.startswith(at)}
                if state or kept["steps"].get(name):
                    group.load(state, kept["steps"][name])
        return kept

    def device_room_bytes(self) -> int | None:
        """See `Engine.device_room_bytes`: there is no accelerator."""
        return None

    def device_peak_bytes(self) -> int | None:
        """See `Engine.device_peak_bytes`."""
        return None
