"""What the engines that train half a block at a time share, whatever does their arithmetic: groups, steps, adapters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from edgetune.data.loader import Batch
from edgetune.model.block import half_of
from edgetune.model.spec import Parameter, ViTSpec
from edgetune.plan.work import feature_flops
from edgetune.schema import Plan
from edgetune.train.controlled import ControlledEngine
from edgetune.train.engine import StepReport
from edgetune.train.scarcity import OutOfMemoryError, memory_errors

Array = TypeVar("Array")

ADAPTED = ("attn.qkv", "attn.proj")  # layers of a block that have adapters


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
        self._names = [name for name in trained if not name.endswith((".lora_a", ".lora_b"))] + list(matrices)

    def __getitem__(self, name: str) -> Array:
        if name not in self._matrices:
            return self._trained[name]
        layer = name.removesuffix(".weight")
        return self._merged(name, self._trained[f"{layer}.lora_a"], self._trained[f"{layer}.lora_b"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class HalvesEngine(ControlledEngine):
    """A step of such an engine, but for the arithmetic.

    Args:
        plan: the constraints.
        spec: the model at the plan's image size and number of classes.
    """

    def __init__(self, plan: Plan, spec: ViTSpec) -> None:
        super().__init__(plan, spec)
        self._trainable = tuple(block.index for block in plan.blocks if block.trainable)
        self._lowest = min(self._trainable, default=spec.depth)
        self._awake = False  # whether the weights that train are in memory
        self._feature_images = 0
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

    @abstractmethod
    def _read_trained(self) -> None:
        """Fill the groups from the file the run began with, and draw adapters."""

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
