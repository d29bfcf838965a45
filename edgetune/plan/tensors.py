"""What a machine takes to put tensors away, make weights ready and update them: by its probes, or guessed.

A probe times each on few numbers and on many (`edgetune.profile.tensors`); what lies between and beyond is on the line
through both. Many small operations make up most of the first, memory most of the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgetune.plan.bill import FLOAT_BYTES
from edgetune.schema import Compute, TensorCost

COPY_BYTES_PER_S = 4e9  # where no probe says
# Where no probe says, a number takes as long as copying so many floats; measured on two x86 cores.
_GUESSED_COPIES = {
    ("keep", "fp32"): 0.4,
    ("keep", "bf16"): 0.75,
    ("keep", "int8"): 2.0,
    ("keep", "int4"): 6.0,
    ("ready", "bf16/fp32"): 0.3,
    ("ready", "int8/fp32"): 0.4,
    ("ready", "fp32/bf16"): 1.5,
    ("ready", "int8/bf16"): 0.4,
    ("update", "lean/adamw/fp32"): 7.0,
    ("update", "lean/adamw/int8"): 7.0,
    ("update", "lean/adamw/factored"): 6.0,
    ("update", "lean/sgd"): 5.0,
    ("update", "lean/sgd-plain"): 3.0,
    ("update", "autograd/adamw"): 7.0,
    ("update", "autograd/sgd"): 5.0,
}


class Price(NamedTuple):
    """Of one thing done with a tensor."""

    call_s: float  # however few the numbers are
    number_s: float

    def seconds(self, numbers: float, calls: float = 1.0) -> float:
        """Of so many numbers, in so many tensors."""
        return calls * self.call_s + numbers * self.number_s


class TensorPrices:
    """Prices of a machine.

    Args:
        compute: what the probes found.
    """

    def __init__(self, compute: Compute) -> None:
        copies_per_s = (compute.copy_bytes_per_s or COPY_BYTES_PER_S) / FLOAT_BYTES
        self._prices = {key: Price(0.0, copies / copies_per_s) for key, copies in _GUESSED_COPIES.items()}
        probed: dict[tuple[str, str], list[TensorCost]] = {}
        for cost in compute.tensor_costs:
            if cost.numbers > 0 and cost.seconds > 0:
                probed.setdefault((cost.operation, cost.lever), []).append(cost)
        self._prices.update({key: _line(costs) for key, costs in probed.items()})

    def keeping(self, precision: str) -> Price:
        """A tensor put away in a saved precision and read back."""
        return self._prices["keep", precision]

    def readying(self, kept: str, wanted: str) -> Price:
        """Frozen weights brought from the precision they are stored in to the arithmetic's."""
        return Price(0.0, 0.0) if kept == wanted else self._prices["ready", f"{kept}/{wanted}"]

    def updating(self, trainer: str, rule: str, state: str) -> Price:
        """A block's weights updated; Adam's rule takes as long as AdamW's."""
        if rule == "adam":
            rule, state = "adamw", "fp32"
        lever = f"{trainer}/{rule}"
        return self._prices["update", f"{lever}/{state}" if trainer == "lean" and rule == "adamw" else lever]


def _line(costs: Sequence[TensorCost]) -> Price:
    """Through the fewest and the most numbers; where what is small fits into a cache, through the most alone."""
    few, many = min(costs, key=lambda cost: cost.numbers), max(costs, key=lambda cost: cost.numbers)
    if few.numbers < many.numbers:
        number_s = (many.seconds - few.seconds) / (many.numbers - few.numbers)
        call_s = few.seconds - number_s * few.numbers
        if number_s > 0 and call_s > 0:
            return Price(call_s, number_s)
    return Price(0.0, many.seconds / many.numbers)
