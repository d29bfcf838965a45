"""Low-rank adapters of frozen blocks: their factors, and the matrices that they correct.

A block with adapters computes with `W + s B A`, made when half of it is passed and let go with it, so attention costs
what it costs without them; the gradients of B and A come from the same two tensors as W's would
(`edgetune.model.block`), at a rank's width. E. Hu et al., arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from edgetune.model.lora import draw_factor
from edgetune.model.spec import Parameter, ViTSpec
from edgetune.model.store import WeightsStore
from edgetune.schema import LoraPlan

_LAYERS = ("attn.qkv", "attn.proj")


class Adapters:
    """Of the attention of some blocks.

    Args:
        spec: the model.
        blocks: which have adapters.
        plan: rank and scale.
    """

    def __init__(self, spec: ViTSpec, blocks: tuple[int, ...], plan: LoraPlan) -> None:
        self._spec, self._blocks, self._rank, self._scale = spec, blocks, plan.rank, plan.alpha / plan.rank

    def parameters(self, index: int) -> list[Parameter]:
        """The factors of a block, by the names that autograd's adapters have."""
        found, rank = [], self._rank
        for layer in _LAYERS:
            out, inside = self._shape(layer)
            at = f"blocks.{index}.{layer}"
            found += [Parameter(f"{at}.lora_a", (rank, inside)), Parameter(f"{at}.lora_b", (out, rank))]
        return found

    def draw(self, factors: Mapping[str, Tensor], seed: int) -> None:
        """Set all factors to where training starts: no correction."""
        generator = torch.Generator().manual_seed(seed)
        for index in self._blocks:
            for layer in _LAYERS:
                at = f"blocks.{index}.{layer}"
                factors[at + ".lora_a"].copy_(draw_factor(self._rank, self._shape(layer)[1], generator))
                factors[at + ".lora_b"].zero_()

    def corrected(self, weights: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a block's attention with its adapters merged in, and the factors as the backward pass wants them.

        Args:
            weights: by names within the block; untouched.
            factors: the same of the adapters.
        """
        merged = dict(weights)
        for layer in _LAYERS:
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
        return _MergedWeights(self, store, trained)

    def matrices(self) -> list[str]:
        """Names of the matrices that are corrected."""
        return [f"blocks.{index}.{layer}.weight" for index in self._blocks for layer in _LAYERS]

    def merged(self, weight: Tensor, inward: Tensor, outward: Tensor) -> Tensor:
        """A matrix with its factors' product added, in the matrix's type."""
        if weight.dtype != inward.dtype:
            return (weight.to(inward.dtype) + self._scale * (outward @ inward)).to(weight.dtype)
        return torch.addmm(weight, outward, inward, alpha=self._scale)

    def _shape(self, layer: str) -> tuple[int, int]:
        width = self._spec.width
        return (3 * width if layer == "attn.qkv" else width), width


class _MergedWeights(Mapping[str, Tensor]):
    def __init__(self, adapters: Adapters, store: WeightsStore, trained: Mapping[str, Tensor]) -> None:
        self._adapters, self._store, self._trained = adapters, store, trained
        whole = [name for name in trained if not name.endswith((".lora_a", ".lora_b"))]
        self._names = [*whole, *adapters.matrices()]

    def __getitem__(self, name: str) -> Tensor:
        if name in self._trained:
            return self._trained[name]
        if name not in self._names:
            raise KeyError(name)
        layer = name.removesuffix(".weight")
        inward, outward = (self._trained[f"{layer}.lora_{letter}"] for letter in "ab")
        weight = self._store.read(name, torch.empty(self._store.shape(name))).to(inward.device)
        return self._adapters.merged(weight, inward, outward).cpu()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
