"""Low-rank adaptation (LoRA): a frozen weight plus a trained product of two thin factors.

y = x Wᵀ + b + (alpha / rank) · x Aᵀ Bᵀ, with A drawn at random and B zero, so that training starts from the model as it
was. Adapters sit on the attention's `qkv` and `proj`; afterwards they are merged into the weights and leave no trace.

E. Hu et al., arXiv 2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgetune.model.vit import Attention, Block, VisionTransformer


def draw_factor(rank: int, in_features: int, generator: torch.Generator | None = None) -> Tensor:
    """A fresh A, (rank, in), on the CPU."""
    factor = torch.empty(rank, in_features)
    nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)
    return factor


class LoraLinear(nn.Linear):
    """A linear layer with a frozen weight and a trained low-rank correction. Its own tensors keep their names."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None = None) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias  # no copy
        self.scale = alpha / rank
        factor_a = draw_factor(rank, base.in_features, generator)
        self.lora_a = nn.Parameter(factor_a.to(base.weight.device, base.weight.dtype))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        plain = F.linear(x, self.weight, self.bias)
        down = F.linear(x, self.lora_a)
        # scaled and added by the product itself: on their own they are two more tensors as large as the output
        summed = torch.addmm(plain.flatten(0, -2), down.flatten(0, -2), self.lora_b.t(), alpha=self.scale)
        return summed.view_as(plain)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The one weight that does what the pair does."""
        return torch.addmm(self.weight, self.lora_b, self.lora_a, alpha=self.scale)


def add_lora(
    model: VisionTransformer, rank: int, alpha: float, blocks: Iterable[int] | None = None, *, seed: int = 0
) -> list[nn.Parameter]:
    """Put adapters on the attention of `blocks` (all by default) and freeze the rest but the classifier.

    Returns:
        The adapters' factors, block by block. What trains is these and the classifier; a block that is to rest a step
        rests its own (`lora_parameters`).
    """
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for name in model.spec.classifiers:
        getattr(model, name).requires_grad_(True)
    factors: list[nn.Parameter] = []
    for index in range(len(model.blocks)) if blocks is None else blocks:
        attention: Attention = model.blocks[index].attn  # type: ignore[assignment]
        attention.qkv = LoraLinear(attention.qkv, rank, alpha, generator)
        attention.proj = LoraLinear(attention.proj, rank, alpha, generator)
        factors += lora_parameters(model.blocks[index])  # type: ignore[arg-type]
    return factors


def lora_parameters(block: Block) -> list[nn.Parameter]:
    """The factors of one block's adapters; empty where it has none."""
    return [parameter for name, parameter in block.named_parameters() if _is_factor(name)]


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' factors by name, for a checkpoint."""
    return {name: value for name, value in model.state_dict().items() if _is_factor(name)}


def load_lora_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the factors of a checkpoint back.

    Raises:
        KeyError: the model's adapters are not those of the checkpoint.
    """
    mine = lora_state(model)
    if mine.keys() != state.keys():
        raise KeyError(f"adapters differ: {sorted(mine.keys() ^ state.keys())[:3]}")
    with torch.no_grad():
        for name, value in mine.items():
            value.copy_(state[name])


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors under timm's names, adapters merged in. Only adapted weights are new, all else is shared."""
    state = {name: value for name, value in model.state_dict().items() if not _is_factor(name)}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            state[f"{name}.weight"] = module.merged_weight()
    return state


def _is_factor(name: str) -> bool:
    return name.endswith((".lora_a", ".lora_b"))
