"""What does not train: weights in memory or on disk, and the blocks below the lowest that may train.

Weights are handed out half a block at a time. Where they stay on disk, that is all the memory they take, and it is the
same memory for every half. The residual stream goes from one of two places to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.model.arrayfile import ArrayStore
from edgetune.model.block import Half, half_of
from edgetune.model.spec import ViTSpec
from edgetune.train.halves import strip
from edgetune.train.onnx.groups import Floats
from edgetune.train.onnx.memory import Arena, Streams
from edgetune.train.onnx.passing import drop_tokens, pass_block, rows
from edgetune.train.onnx.runtime import Runtime
from edgetune.train.scarcity import memory_errors


class FrozenBlocks:
    """Weights of blocks that never train, in float32.

    Args:
        store: the file they come from.
        blocks: which.
        on_disk: whether they stay there between two uses.
    """

    def __init__(self, store: ArrayStore, blocks: Iterable[int], on_disk: bool) -> None:
        self._store, self._kept = store, not on_disk
        self._weights: dict[str, Floats] = {}
        self._names: dict[tuple[int, Half], list[str]] = {}
        self._buffer = Arena()
        for index in blocks:
            at = f"blocks.{index}."
            self._names[index, "attention"], self._names[index, "mlp"] = [], []
            for name in store.names:
                if name.startswith(at):
                    self._names[index, half_of(name)].append(name)

    def half(self, index: int, half: Half) -> Mapping[str, Floats]:
        """Weights of half a block by their names within the block; from disk, until the next half is asked for."""
        self._buffer.reset()
        return strip({name: self._ready(name) for name in self._names[index, half]}, f"blocks.{index}.")

    def free(self) -> None:
        """Give back the memory of the half handed out last."""
        self._buffer.free()

    def _ready(self, name: str) -> Floats:
        if not self._kept:
            return self._store.read_array(name, self._buffer.empty(self._store.shape(name)))
        if name not in self._weights:
            self._weights[name] = self._store.read_array(name, np.empty(self._store.shape(name), np.float32))
        return self._weights[name]


class FrozenPart:
    """Embedding and frozen blocks, from images to what enters the lowest trainable block.

    Args:
        spec: the model.
        blocks: weights of what is frozen.
        embeddings: gives the weights of the embedding, which are not kept where `free` may be called.
        runtime: runs the graphs.
        streams: where the stream may lie.
        lowest: the lowest block that may train.
        stay: patches that may enter it in training.
    """

    def __init__(
        self,
        spec: ViTSpec,
        blocks: FrozenBlocks,
        embeddings: Callable[[], Mapping[str, Floats]],
        runtime: Runtime,
        streams: Streams,
        *,
        lowest: int,
        stay: int,
    ) -> None:
        self.blocks, self._lowest, self._stay = blocks, lowest, stay
        self._spec, self._read_embeddings, self._runtime, self._streams = spec, embeddings, runtime, streams
        self._embeddings: Mapping[str, Floats] | None = None

    def embed(self, images: NDArray[np.float32], out: Floats | None = None) -> Floats:
        """Tokens (B, N, C) of images (B, 3, S, S)."""
        if self._embeddings is None:
            self._embeddings = self._read_embeddings()
        shape = (len(images), self._spec.tokens, self._spec.width)
        out = np.empty(shape, np.float32) if out is None else out
        inputs: dict[str, NDArray[Any]] = {**self._embeddings, "images": np.ascontiguousarray(images)}
        kernel = inputs["patch_embed.proj.weight"]
        inputs["patch_embed.proj.weight"] = kernel.reshape(len(kernel), -1)
        self._runtime.run("embed", inputs, {"y": rows(out)})
        return out

    def free(self) -> None:
        """Give back memory until this part is needed again."""
        self._embeddings = None
        self._runtime.shrink()
        self._streams.free()
        self.blocks.free()

    def features(self, images: NDArray[np.float32], part: int, *, all_tokens: bool = False) -> Floats:
        """`embed`, then `run`."""
        x = self._streams.next((len(images), self._spec.tokens, self._spec.width))
        for start in range(0, len(images), part):
            self.embed(images[start : start + part], x[start : start + part])
        return self.run(x, part, all_tokens=all_tokens)

    def run(self, x: Floats, part: int, *, all_tokens: bool = False) -> Floats:
        """Pass embedded tokens (B, N, C) up to the lowest block that may train.

        Args:
            x: the stream.
            part: images that pass a block at a time.
            all_tokens: keep every token, as in evaluation; otherwise as many as the plan lets into that block.

        Returns:
            (B, N', C); where nothing but the classifier trains, the tokens that it reads. Written over by the next.

        Raises:
            OutOfMemoryError: there is no memory for so many images.
        """
        depth, spec = self._spec.depth, self._spec
        with memory_errors():
            for index in range(self._lowest):
                last = index == depth - 1
                drops = index == self._lowest - 1 and not last and not all_tokens and self._stay < spec.patches
                weights = self.blocks.half
                x, received = pass_block(
                    self._runtime, spec, x, weights, index, part, self._streams.next, observe=drops
                )
                if received is not None:
                    target = self._streams.next((len(x), spec.prefix + self._stay, spec.width))
                    drop_tokens(self._runtime, x, received, self._stay, target)
                    x = target
        return x
