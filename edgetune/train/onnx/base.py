"""An ONNX engine but for the training step: its parts, evaluation, and what it reads from and leaves in files."""

from __future__ import annotations

import json
from abc import ABC
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from edgetune.allocator import release_code, release_free_memory
from edgetune.data.loader import Batch
from edgetune.errors import InputError
from edgetune.model.arrayfile import ArrayStore, copy_arrays, write_arrays
from edgetune.model.header import WeightsMetadata
from edgetune.model.registry import find_spec
from edgetune.schema import Plan
from edgetune.train.engine import Evaluation
from edgetune.train.halves import HalvesEngine, trained_groups
from edgetune.train.onnx.adapters import Adapters
from edgetune.train.onnx.answers import log_softmax
from edgetune.train.onnx.frozen import FrozenBlocks, FrozenPart
from edgetune.train.onnx.groups import Floats, Group
from edgetune.train.onnx.memory import Streams
from edgetune.train.onnx.passing import count, pass_block, rows
from edgetune.train.onnx.runtime import LIBRARY, Load, Runtime
from edgetune.train.scarcity import memory_errors


class OnnxBase(HalvesEngine[Floats], ABC):
    """See the module, and `edgetune.train.engine.Engine` for what each call promises.

    Args:
        plan: the constraints.
        base: the weights as they were before the run, under timm's names.
        load: gives the graphs (`edgetune.train.onnx.cache`).
    """

    _groups: dict[str, Group]
    _adapters: Adapters | None
    frozen: FrozenPart

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

    def _read(self, name: str, out: Floats | None = None) -> Floats:
        return self._store.read_array(name, np.empty(self._store.shape(name), np.float32) if out is None else out)

    # -- as an `edgetune.train.features.Extractor` ---------------------------------------------------------------------

    def embed_images(self, images: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """See `HalvesEngine.embed_images`."""
        return self.frozen.embed(images, out)

    def run_frozen(self, x: NDArray[np.float32], part: int, *, all_tokens: bool) -> NDArray[np.float32]:
        """See `Extractor.run_frozen`; the next call writes over what is returned."""
        return self.frozen.run(x, part, all_tokens=all_tokens)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(
        self, batches: Iterable[Batch], micro_batch_size: int, stop: Callable[[], bool] = lambda: False
    ) -> Evaluation | None:
        """See `Engine.evaluate`. Nothing is saved meanwhile; steps over cached features do without the frozen part."""
        self.rest()
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
        release_free_memory()  # training has arrays of other sizes, and needs other code
        release_code(LIBRARY)
        return found._replace(loss=loss / max(1, len(found.labels)))

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

    def save_weights(self, path: Path, accuracy: float | None) -> int:
        """See `Engine.save_weights`."""
        metadata = WeightsMetadata.of(self.spec, self.plan.data.classes, val_accuracy=json.dumps(accuracy))
        replaced: Mapping[str, Floats] = self._trained_weights()
        if self._adapters is not None:
            replaced = self._adapters.merged_weights(self._store, replaced)
        copy_arrays(path, self._store, replaced, metadata.strings())
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
            "stepped": sorted(self._stepped),
        }
        write_arrays(path, arrays, {"edgetune": json.dumps(kept, ensure_ascii=False)})
        return path.stat().st_size

    def load_state(self, base: Path, path: Path) -> dict[str, Any]:
        """See `Engine.load_state`."""
        try:
            with memory_errors():
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
            self._stepped = set(kept.get("stepped", ()))
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
