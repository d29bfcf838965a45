"""Weights that train, in stretches of memory that are updated whole.

A group holds the parameters that are updated together: one half of a block, the classifier, the embeddings. They lie
one after the other in one flat tensor, matrices (which decay) first, and so do their gradients; an optimizer then
works on a few long vectors, whatever the number of parameters, and a gradient is gone once its group has stepped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from edgetune.model.spec import Parameter
from edgetune.train.optimizer import decays


class Stretch(NamedTuple):
    """Where a parameter lies in its group."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return int(torch.Size(self.shape).numel())


class Group:
    """Parameters that are updated together.

    Args:
        name: of the group, unique in a model.
        parameters: names and shapes under timm's names.
        device: where they live.
    """

    def __init__(self, name: str, parameters: Sequence[Parameter], device: torch.device | None = None) -> None:
        self.name = name
        ordered = sorted(parameters, key=lambda parameter: not decays(parameter.name, parameter.shape))
        self.stretches: list[Stretch] = []
        start = 0
        for parameter in ordered:
            self.stretches.append(Stretch(parameter.name, start, parameter.shape))
            start += parameter.count
        self.size = start
        self.decayed = sum(parameter.count for parameter in ordered if decays(parameter.name, parameter.shape))
        self.values = torch.empty(self.size, device=device)
        self.weights: dict[str, Tensor] = self.views(self.values)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters by name as parts of a flat tensor of the group's size (or longer)."""
        return {part.name: flat[part.start : part.start + part.size].view(part.shape) for part in self.stretches}

    def matrices(self) -> list[Stretch]:
        """The stretches of two axes and more."""
        return [part for part in self.stretches if len(part.shape) > 1]


def strip(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Weights by their names within a block."""
    return {name.removeprefix(prefix): value for name, value in weights.items()}
