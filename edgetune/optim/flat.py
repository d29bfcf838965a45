"""Weights that train, in stretches of memory that are updated whole.

A group lies in one flat tensor as `edgetune.optim.rules.Layout` says, and so do its gradients; an optimizer then works
on a few long vectors, whatever the number of parameters, and a gradient is gone once its group has stepped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgetune.model.spec import Parameter
from edgetune.optim.rules import Layout


class Group(Layout):
    """Parameters that are updated together.

    Args:
        name: of the group, unique in a model.
        parameters: names and shapes under timm's names.
        device: where they live.
    """

    def __init__(self, name: str, parameters: Sequence[Parameter], device: torch.device | None = None) -> None:
        super().__init__(name, parameters)
        self.values = torch.empty(self.size, device=device)
        self.weights: dict[str, Tensor] = self.views(self.values)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters by name as parts of a flat tensor of the group's size (or longer)."""
        return {part.name: flat[part.start : part.start + part.size].view(part.shape) for part in self.stretches}
