"""Answers of a trained model without torch: the forward graphs over the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import InputError
from edgetune.model.arrayfile import ArrayStore
from edgetune.model.names import match
from edgetune.model.spec import ViTSpec
from edgetune.train.onnx.cache import graphs_for
from edgetune.train.onnx.frozen import FrozenBlocks, FrozenPart
from edgetune.train.onnx.groups import Floats
from edgetune.train.onnx.memory import Streams
from edgetune.train.onnx.passing import count, rows
from edgetune.train.onnx.runtime import Runtime

_PART = 8  # images that pass a block at a time


class OnnxModel:
    """A model to be asked, under timm's names and in float32.

    Args:
        spec: the architecture.
        path: the checkpoint.
        threads: of the arithmetic.

    Raises:
        InputError: the file is damaged, or not what its header says.
    """

    def __init__(self, spec: ViTSpec, path: Path, threads: int) -> None:
        self._spec, self._store = spec, ArrayStore(path)
        found = match(self._store.header, spec)
        if found.classes != spec.classes:
            raise InputError(f"{path} has no classifier for its {spec.classes} classes; train it with fit.")
        self._runtime = Runtime(graphs_for(spec, "sgd-plain", None), threads)
        blocks = FrozenBlocks(self._store, range(spec.depth), on_disk=False)
        embedding = {item.name: self._read(item.name) for item in spec.embedding_parameters()}
        self._network = FrozenPart(
            spec, blocks, lambda: embedding, self._runtime, Streams(), lowest=spec.depth, stay=spec.patches
        )
        self._head = {item.name: self._read(item.name) for item in spec.head_parameters()}

    def log_probabilities(self, images: NDArray[np.float32]) -> Floats:
        """Log-probabilities (B, classes) of images (B, 3, S, S)."""
        x = self._network.features(images, _PART, all_tokens=True)
        logits = np.empty((len(x), self._spec.classes), np.float32)
        inputs: dict[str, NDArray[Any]] = {"x": rows(x), "tokens": count(x.shape[1]), **self._head}
        self._runtime.run("logits", inputs, {"logits": logits})
        return log_softmax(logits)

    def _read(self, name: str) -> Floats:
        values: Floats = self._store.read_array(name, np.empty(self._store.shape(name), np.float32))
        return values


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities of logits (B, classes)."""
    shifted = logits - logits.max(1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found
