"""Low-rank adapters of frozen blocks; see `edgetune.train.lean.adapters`, whose names and numbers these are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgetune.model.arrayfile import ArrayStore
from edgetune.model.draws import Draws, lora_factor
from edgetune.model.spec import ViTSpec
from edgetune.schema import LoraPlan
from edgetune.train.halves import ADAPTED, MergedWeights
from edgetune.train.onnx.groups import Floats
from edgetune.train.onnx.memory import Arena
from edgetune.train.onnx.runtime import Runtime


class Adapters:
    """Of the attention of some blocks.

    Args:
        spec: the model.
        blocks: which have adapters.
        plan: rank and scale.
        runtime: runs the graph that merges them.
    """

    def __init__(self, spec: ViTSpec, blocks: tuple[int, ...], plan: LoraPlan, runtime: Runtime) -> None:
        self._spec, self._blocks, self._rank, self._runtime = spec, blocks, plan.rank, runtime
        self._buffer = Arena()

    def draw(self, factors: Mapping[str, Floats], seed: int) -> None:
        """Set all factors to where training starts: no correction."""
        draws = Draws(seed)
        for index in self._blocks:
            for layer in ADAPTED:
                at = f"blocks.{index}.{layer}"
                factors[at + ".lora_a"][...] = lora_factor(self._rank, self._spec.width, draws)
                factors[at + ".lora_b"].fill(0)

    def corrected(self, weights: Mapping[str, Floats], factors: Mapping[str, Floats]) -> dict[str, Floats]:
        """Weights of a block's attention with its adapters merged in, and the factors as the backward pass wants them.

        Args:
            weights: by names within the block; untouched.
            factors: the same of the adapters.

        Returns:
            The weights, of which the corrected ones are written over when the next block is asked for.
        """
        self._buffer.reset()
        merged = dict(weights)
        for layer in ADAPTED:
            a, b = (factors[f"{layer}.lora_{letter}"] for letter in "ab")
            scaled = {letter: self._buffer.empty(values.shape) for letter, values in (("a", a), ("b", b))}
            whole = self._buffer.empty(weights[layer + ".weight"].shape)
            self._merge(weights[layer + ".weight"], a, b, whole, scaled)
            merged[layer + ".weight"] = whole
            merged |= {f"{layer}.lora_{letter}": values for letter, values in scaled.items()}
        return merged

    def merged_weights(self, store: ArrayStore, trained: Mapping[str, Floats]) -> Mapping[str, Floats]:
        """What a file gets in the place of `store`'s: trained weights, and each corrected matrix when it is asked for.

        Args:
            store: the weights the run began with.
            trained: factors and whatever else trains, by name.
        """

        def merged(name: str, a: Floats, b: Floats) -> Floats:
            return self.merged(store.read_array(name), a, b)

        return MergedWeights(trained, self.matrices(), merged)

    def matrices(self) -> list[str]:
        """Names of the matrices that are corrected."""
        return [f"blocks.{index}.{layer}.weight" for index in self._blocks for layer in ADAPTED]

    def merged(self, weight: Floats, a: Floats, b: Floats) -> Floats:
        """A matrix with its factors' product added."""
        found = np.empty(weight.shape, np.float32)
        self._merge(weight, a, b, found, {"a": np.empty_like(a), "b": np.empty_like(b)})
        return found

    def _merge(self, weight: Floats, a: Floats, b: Floats, out: Floats, scaled: Mapping[str, Floats]) -> None:
        outputs = {f"scaled.lora_{letter}": values for letter, values in scaled.items()}
        self._runtime.run("merge", {"weight": weight, "lora_a": a, "lora_b": b}, {"merged": out, **outputs})
