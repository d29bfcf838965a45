"""Low-rank adapters of frozen blocks: their factors, and the matrices that they correct.

A block with adapters computes with `W + s B A`, made when half of it is passed and let go with it, so attention costs
what it costs without them; the gradients of B and A come from the same two tensors as W's would
(`edgetune.model.block`), at a rank's width. E. Hu et al., arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgetune.model.lora import draw_factor
from edgetune.model.spec import ViTSpec
from edgetune.model.store import WeightsStore
from edgetune.schema import LoraPlan
from edgetune.train.halves import ADAPTED, MergedWeights


class Adapters:
    """Of the attention of some blocks.

    Args:
        spec: the model.
        blocks: which have adapters.
        plan: rank and scale.
    """

    def __init__(self, spec: ViTSpec, blocks: tuple[int, ...], plan: LoraPlan) -> None:
        self._spec, self._blocks, self._rank, self._scale = spec, blocks, plan.rank, plan.alpha / plan.rank

    def draw(self, factors: Mapping[str, Tensor], seed: int) -> None:
        """Set all factors to where training starts: no correction."""
        generator = torch.Generator().manual_seed(seed)
        for index in self._blocks:
            for layer in ADAPTED:
                at = f"blocks.{index}.{layer}"
                factors[at + ".lora_a"].copy_(draw_factor(self._rank, self._spec.width, generator))
                factors[at + ".lora_b"].zero_()

    def corrected(self, weights: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a block's attention with its adapters merged in, and the factors as the backward pass wants them.

        Args:
            weights: by names within the block; untouched.
            factors: the same of the adapters.
        """
        merged = dict(weights)
        for layer in ADAPTED:
            inward, outward = (factors[f"{layer}.lora_{letter}"] for letter in "ab")
            merged[layer + ".weight"] = self.merged(weights[layer + ".weight"], inward, outward)
            merged[layer + ".lora_a"], merged[layer + ".lora_b"] = self._scale * inward, self._scale * outward
        return merged

    def merged_weights(self, store: WeightsStore, trained: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What a file gets in the place of `store`'s: trained weights, and each corrected matrix when it is asked for.

        Args:
            store: the weights the run began with.
            trained: factors and whatever else trains, by name.
        """

        def merged(name: str, inward: Tensor, outward: Tensor) -> Tensor:
            weight = store.read(name, torch.empty(store.shape(name))).to(inward.device)
            return self.merged(weight, inward, outward).cpu()

        return MergedWeights(trained, self.matrices(), merged)

    def matrices(self) -> list[str]:
        """Names of the matrices that are corrected."""
        return [f"blocks.{index}.{layer}.weight" for index in self._blocks for layer in ADAPTED]

    def merged(self, weight: Tensor, inward: Tensor, outward: Tensor) -> Tensor:
        """A matrix with its factors' product added, in the matrix's type."""
        if weight.dtype != inward.dtype:
            return torch.addmm(weight.to(inward.dtype), outward, inward, alpha=self._scale).to(weight.dtype)
        return torch.addmm(weight, outward, inward, alpha=self._scale)
