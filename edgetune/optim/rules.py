"""What all engines agree on about updates: the constants of the rules, which weights decay, how groups are laid out.

A group holds the parameters that are updated together: one half of a block, the classifier, the embeddings. They lie
one after the other in one flat stretch of memory, matrices (which decay) first, and so do their gradients and moments;
states of runs are kept in this layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgetune.model.spec import Parameter

BETAS, EPSILON, MOMENTUM = (0.9, 0.999), 1e-8, 0.9


def decays(name: str, shape: Sequence[int]) -> bool:
    """Whether weight decay pulls at a parameter: at matrices, as in timm; not at biases, norms, tokens, positions."""
    return len(shape) >= 2 and not name.endswith(("_token", "pos_embed"))


class Stretch(NamedTuple):
    """Where a parameter lies in its group."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Layout:
    """Where the parameters of a group lie.

    Args:
        name: of the group, unique in a model.
        parameters: names and shapes under timm's names.
    """

    def __init__(self, name: str, parameters: Sequence[Parameter]) -> None:
        self.name = name
        ordered = sorted(parameters, key=lambda parameter: not decays(parameter.name, parameter.shape))
        self.stretches: list[Stretch] = []
        start = 0
        for parameter in ordered:
            self.stretches.append(Stretch(parameter.name, start, parameter.shape))
            start += parameter.count
        self.size = start
        self.decayed = sum(parameter.count for parameter in ordered if decays(parameter.name, parameter.shape))

    def matrices(self) -> list[Stretch]:
        """The stretches of two axes and more."""
        return [part for part in self.stretches if len(part.shape) > 1]
