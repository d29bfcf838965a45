"""Weights that train, each group in one flat array, and their optimizer, whose rule is a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.model.spec import Parameter
from edgetune.optim.rules import Layout
from edgetune.train.onnx.runtime import Runtime

Floats = NDArray[np.float32]

STATE = {"adamw": ("first", "second"), "adam": ("first", "second"), "sgd": ("momentum",), "sgd-plain": ()}
_PIECE = 1 << 16  # values updated at a time: what an update computes on the way stays in cache, and small


class Group(Layout):
    """Parameters that are updated together, and the state of their optimizer.

    Args:
        name: of the group, unique in a model.
        parameters: names and shapes under timm's names.
        optimizer: the update rule; decides what state there is.
        weight_decay: of the matrices.
    """

    def __init__(self, name: str, parameters: Sequence[Parameter], optimizer: str, weight_decay: float) -> None:
        super().__init__(name, parameters)
        self.values = np.empty(self.size, np.float32)
        self.weights = self.views(self.values)
        self.state: dict[str, Floats] = {key: np.zeros(self.size, np.float32) for key in STATE[optimizer]}
        self.steps = 0
        self._weight_decay = weight_decay

    def views(self, flat: Floats) -> dict[str, Floats]:
        """Parameters by name as parts of a flat array of the group's size (or longer)."""
        return {part.name: flat[part.start : part.start + part.size].reshape(part.shape) for part in self.stretches}

    def step(self, runtime: Runtime, gradient: Floats, learning_rate: float) -> None:
        """Update the group by its flat gradient, weights and moments where they lie."""
        self.steps += 1
        scalars = {"learning_rate": _scalar(learning_rate), "step": _scalar(self.steps)}
        for start, stop, decay in ((0, self.decayed, self._weight_decay), (self.decayed, self.size, 0.0)):
            scalars["decay"] = _scalar(decay)
            for begin in range(start, stop, _PIECE):
                some = slice(begin, min(begin + _PIECE, stop))
                moved = {"weights": self.values[some]} | {key: values[some] for key, values in self.state.items()}
                outputs = {f"new.{key}": values for key, values in moved.items()}
                runtime.run("update", {**moved, "gradient": gradient[some], **scalars}, outputs)

    def load(self, state: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Take up a state and the number of updates that made it.

        Raises:
            ValueError: it is not this group's.
        """
        sizes = {key: (value.size, value.dtype) for key, value in state.items()}
        if sizes != {key: (self.size, np.dtype(np.float32)) for key in self.state}:
            raise ValueError(f"the optimizer's state of {self.name} is of another plan")
        for key, kept in self.state.items():
            kept[:] = state[key]
        self.steps = steps


def _scalar(value: float) -> Floats:
    return np.array(value, np.float32)
