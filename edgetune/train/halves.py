"""What the engines that train half a block at a time share, whatever does their arithmetic.

Groups of weights and adapters, a step but for its arithmetic, and the groups in which images pass the frozen blocks
when the model is evaluated.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetune.data.loader import Batch
from edgetune.model.block import Half, half_of
from edgetune.model.spec import Parameter, ViTSpec
from edgetune.plan.lean_bill import group_size
from edgetune.plan.work import feature_flops
from edgetune.schema import Plan
from edgetune.train.controlled import ControlledEngine
from edgetune.train.engine import StepReport
from edgetune.train.features import at_a_time
from edgetune.train.scarcity import OutOfMemoryError, memory_errors

Array = TypeVar("Array")
Array_co = TypeVar("Array_co", covariant=True)

ADAPTED = ("attn.qkv", "attn.proj")  # layers of a block that have adapters
_FACTORS = (".lora_a", ".lora_b")  # how the names of their weights end


def adapted_shape(spec: ViTSpec, layer: str) -> tuple[int, int]:
    """Outputs and inputs of a layer in `ADAPTED`."""
    return (3 * spec.width if layer == "attn.qkv" else spec.width), spec.width


def adapter_parameters(spec: ViTSpec, index: int, rank: int) -> list[Parameter]:
    """The factors of block `index`, by the names that autograd's adapters have."""
    found = []
    for layer in ADAPTED:
        out, inside = adapted_shape(spec, layer)
        at = f"blocks.{index}.{layer}"
        found += [Parameter(f"{at}.lora_a", (rank, inside)), Parameter(f"{at}.lora_b", (out, rank))]
    return found


def trained_groups(spec: ViTSpec, plan: Plan) -> dict[str, list[Parameter]]:
    """Parameters that may train, by what is updated together, from the lowest block to the highest."""
    groups: dict[str, list[Parameter]] = {}
    if plan.embeddings_trainable:
        groups["embeddings"] = list(spec.embedding_parameters())
    for index in (block.index for block in plan.blocks if block.trainable):
        at = f"blocks.{index}."
        if plan.lora is not None:
            groups[at + "attention"] = adapter_parameters(spec, index, plan.lora.rank)
            continue
        parameters = list(spec.block_parameters(index))
        for half in ("attention", "mlp"):
            groups[at + half] = [item for item in parameters if half_of(item.name) == half]
    groups["head"] = list(spec.head_parameters())
    return groups


class MergedWeights(Mapping[str, Array], Generic[Array]):
    """What a file gets in the place of the weights a run began with: each corrected matrix when it is asked for.

    Args:
        trained: factors and whatever else trains, by name.
        matrices: names of the matrices that adapters correct.
        merged: makes one of them of its name and its factors, A and B.
    """

    def __init__(
        self, trained: Mapping[str, Array], matrices: Sequence[str], merged: Callable[[str, Array, Array], Array]
    ) -> None:
        self._trained, self._matrices, self._merged = trained, frozenset(matrices), merged
        whole = [name for name in trained if not name.endswith(_FACTORS)]
        self._names = dict.fromkeys([*whole, *matrices])

    def __getitem__(self, name: str) -> Array:
        if name not in self._matrices:
            return self._trained[name]
        layer = name.removesuffix(".weight")
        return self._merged(name, self._trained[f"{layer}.lora_a"], self._trained[f"{layer}.lora_b"])

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would merge the matrix to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def parts_of(images: int, part: int) -> list[slice]:
    """So many images, `part` at a time."""
    return [slice(start, start + part) for start in range(0, images, part)]


def part_behind(part: int, tokens: int, asked: int) -> int:
    """Images that pass an MLP together: as many tokens as `part` images have before it, where `asked` are left of each.

    The classifier reads one token: the last MLP would be passed by a handful of rows at a time.
    """
    return part * tokens // asked


def strip(weights: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """Weights by their names within a block."""
    return {name.removeprefix(prefix): values for name, values in weights.items()}


class TrainedGroup(Protocol[Array]):
    """Parameters that are updated together."""

    weights: dict[str, Array]


class Corrections(Protocol[Array]):
    """Adapters of some blocks."""

    def draw(self, factors: Mapping[str, Array], seed: int) -> None:
        """Set all factors to where training starts."""

    def corrected(self, weights: Mapping[str, Array], factors: Mapping[str, Array]) -> dict[str, Array]:
        """Weights of half a block with its adapters merged in."""


class FrozenWeights(Protocol[Array_co]):
    """Weights of blocks that never train."""

    def half(self, index: int, half: Half) -> Mapping[str, Array_co]:
        """Of half a block, by their names within the block."""


class Below(Protocol[Array_co]):
    """What lies below the lowest block that may train."""

    @property
    def blocks(self) -> FrozenWeights[Array_co]:
        """Weights of all blocks that never train."""

    def free(self) -> None:
        """Give back memory until this part is needed again."""


class HalvesEngine(ControlledEngine, Generic[Array]):
    """Such an engine, but for the arithmetic.

    Args:
        plan: the constraints.
        spec: the model at the plan's image size and number of classes.
    """

    _groups: Mapping[str, TrainedGroup[Array]]
    _adapters: Corrections[Array] | None
    frozen: Below[Array]
    base_s: float | None = None

    def __init__(self, plan: Plan, spec: ViTSpec) -> None:
        super().__init__(plan, spec)
        self._trainable = tuple(block.index for block in plan.blocks if block.trainable)
        self._lowest = min(self._trainable, default=spec.depth)
        self._recomputed = frozenset(block.index for block in plan.blocks if block.recomputed)
        self._awake = False  # whether the weights that train are in memory
        self._feature_images = 0
        self._eased = False
        self._stepped: set[str] = set()  # groups that an interrupted step has updated

    def train_step(self, batch: Batch, learning_rate: float, micro_batch_size: int) -> StepReport:
        """See `Engine.train_step`. Where memory runs out on the way back, what was updated is not updated twice."""
        before = self.controller.state_dict() if self.controller else None
        trained = self.controller.draw() if self.controller else self._trainable
        try:
            with memory_errors():
                self._wake()
                loss, kept = self._step(batch, trained, learning_rate, micro_batch_size)
        except OutOfMemoryError:
            if self.controller and before:
                self.controller.load_state_dict(before)
            raise
        self._stepped.clear()
        return self._report(batch, loss, trained, kept, self._take_feature_flops())

    def _wake(self) -> None:
        """Read the weights that train, if they aren't there yet: memory that filling a cache can do without."""
        if self._awake:
            return
        self._awake = True  # first: drawing adapters asks for the weights
        try:
            self._read_trained()
        except BaseException:
            self._awake = False  # memory may have run out half-way
            raise

    def _read_trained(self) -> None:
        """Fill the groups from the file the run began with, and draw adapters."""
        for group in self._groups.values():
            for name, values in group.weights.items():
                if not name.endswith(_FACTORS):
                    self._read(name, values)
        if self._adapters is not None:
            self._adapters.draw(self._trained_weights(), self.plan.seed)

    @abstractmethod
    def _read(self, name: str, out: Array | None = None) -> Array:
        """A weight of the file the run began with, into `out` where given."""

    def _trained_weights(self) -> dict[str, Array]:
        self._wake()
        return {name: values for group in self._groups.values() for name, values in group.weights.items()}

    def _embeddings(self) -> Mapping[str, Array]:
        if self.plan.embeddings_trainable:
            self._wake()
            return self._groups["embeddings"].weights
        return {parameter.name: self._read(parameter.name) for parameter in self.spec.embedding_parameters()}

    def _half(self, index: int, half: Half) -> Mapping[str, Array]:
        """Weights of half a block by their names within the block."""
        group = self._groups.get(f"blocks.{index}.{half}")
        ours = None if group is None else strip(group.weights, f"blocks.{index}.")
        if self._adapters is None:
            return self.frozen.blocks.half(index, half) if ours is None else ours
        weights = self.frozen.blocks.half(index, half)
        return weights if ours is None else self._adapters.corrected(weights, ours)

    @abstractmethod
    def _step(
        self, batch: Batch, trained: tuple[int, ...], learning_rate: float, part: int
    ) -> tuple[float, list[float]]:
        """Forward, backward, update; the loss, and the tokens each block passed on."""

    def count_features(self, images: int) -> None:
        """Note that features of so many images were computed for a cache; the next step reports the work."""
        self._feature_images += images

    def _take_feature_flops(self) -> int:
        images, self._feature_images = self._feature_images, 0
        return images * feature_flops(self.spec, self._lowest)

    def _asked(self, index: int) -> int | None:
        """How many tokens are needed behind a block; None: all."""
        return self.spec.readers if index == self.spec.depth - 1 else None

    # -- as an `edgetune.train.features.Extractor`, and in evaluation --------------------------------------------------

    @abstractmethod
    def embed_images(self, images: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """See `Extractor.embed_images`; into `out` where given."""

    @abstractmethod
    def run_frozen(self, x: NDArray[np.float32], part: int, *, all_tokens: bool) -> NDArray[np.float32]:
        """See `Extractor.run_frozen`."""

    @abstractmethod
    def rest(self) -> None:
        """See `Extractor.rest`."""

    def ease(self) -> bool:
        """See `Engine.ease`."""
        could, self._eased = self.plan.feature_cache is not None and not self._eased, True
        return could

    def free_frozen(self) -> None:
        """See `Extractor.free_frozen`."""
        self.frozen.free()

    def _in_groups(self, batches: Iterable[Batch], part: int) -> Iterator[Batch]:
        """Features of many images for batches of a few, since each group reads the weights of all frozen blocks."""
        size = self.plan.batch_size
        if self.plan.feature_cache is not None:
            part = part if self._eased else at_a_time(self.plan, part)
            size = part if self._eased else group_size(self.spec, part)
        stream, filled = np.empty(0, np.float32), 0
        waiting: list[Batch] = []
        for batch in batches:
            if batch.images.ndim != 4 or not self._lowest:
                yield batch
                continue
            count = len(batch.labels)
            if waiting and filled + count > len(stream):
                yield self._passed(waiting, stream[:filled], part)
                filled = 0
            if not len(stream):
                stream = np.empty((max(size, count), self.spec.tokens, self.spec.width), np.float32)
            with memory_errors():
                self.embed_images(batch.images, stream[filled : filled + count])
            waiting.append(batch._replace(images=batch.images[:0].copy()))  # a view would keep them all
            filled += count
        if waiting:
            yield self._passed(waiting, stream[:filled], part)

    def _passed(self, waiting: list[Batch], stream: NDArray[np.float32], part: int) -> Batch:
        """What enters the lowest block that may train, for the embedded images of these batches, which are let go."""
        labels = np.concatenate([batch.labels for batch in waiting])
        indices = [batch.indices for batch in waiting if batch.indices is not None]
        waiting.clear()
        features = self.run_frozen(stream, part, all_tokens=True)
        return Batch(features, labels, np.concatenate(indices) if indices else None)

    def save_base(self, path: Path) -> int:
        """See `Engine.save_base`: it was there before the engine."""
        return path.stat().st_size
