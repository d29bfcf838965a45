"""How fast this machine runs the parts of a block, at shapes that were probed and at those between and beyond.

A part of a block on B images of N tokens takes, with C the width,

    calls       a fixed time, for some tens of kernels started
    elements    B N C: norms, activations, sums, everything that passes over a tensor
    products    B N C²: with weights
    attention   B N² C
    weights     C²: read for a forward pass, added to for a gradient, however few the tokens

times five prices, by least squares over the probes of a trainer, none below zero. A probe's parts are differences of
three timings, so the prices of a part are those that, with the parts before it, come nearest to the whole timing in
proportion: noise in a small difference then weighs no more than it should. What this leaves unexplained at the probes
(caches, shapes that a kernel likes less) is a factor for the forward pass and one for the backward pass, interpolated
in octaves of width, tokens and rows, and fading to 1 where nothing like it was probed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from edgetune.plan.tensors import TensorPrices
from edgetune.schema import BlockCost, Compute

Part = Literal["forward", "pass_gradient", "weight_gradient"]
Way = Literal["eager", "lean", "lean-bf16"]
PARTS: tuple[Part, ...] = ("forward", "pass_gradient", "weight_gradient")

# Where only a matrix product was timed: the share of its rate that a block reaches (field measurements: 0.53 to 0.73).
_BLOCK_SHARE_OF_GEMM = 0.6
_RIDGE = 1e-6  # so that fewer probes than prices still give some
_MOST_FACTOR = 1.5  # that a probe may lie from what its prices say; beyond it is noise
# Under the lean allocator every large tensor is of fresh pages, and MKL has new ones for each product: by how much that
# slows a block where no probe says (1.86 s a step against 1.34 s, a ViT-S at 98 px, batch 32), and at most.
_TIGHT, _MOST_TIGHT = {"eager": 1.35, "lean": 1.5}, 6.0
_NOTICEABLY = 0.85  # of the time: less is not worth the code that bf16 brings into memory
_UNPROBED = 0.25  # weight of the factor 1 among those of the probes: that of a probe two octaves away
_CALLS_OF_MLP, _WEIGHTS_OF_MLP = 1 / 2, 2 / 3  # of a block's; the former a guess
_PRODUCT_FLOPS = 24  # of all products with weights, by B N C²
_ATTENTION_FLOPS = {"forward": 4, "pass_gradient": 8, "weight_gradient": 0}  # by B N² C


class Prices(NamedTuple):
    """Seconds for a unit of each term; see the module."""

    calls: float
    elements: float
    products: float
    attention: float
    weights: float

    def seconds(self, width: int, tokens: float, images: float, share: float = 1.0, seldom: float = 1.0) -> float:
        """Of a part on so many images.

        Args:
            width: of the model.
            tokens: an image.
            images: that pass together.
            share: of the work with tokens, for a block that leaves some out.
            seldom: how often its MLP is run for once that its attention is.
        """
        terms = _terms(width, tokens, images)
        calls = 1 - (1 - seldom) * _CALLS_OF_MLP
        weights = 1 - (1 - seldom) * _WEIGHTS_OF_MLP
        fixed = calls * self.calls * terms[0] + weights * self.weights * terms[4]
        return fixed + share * sum(price * term for price, term in zip(self[1:4], terms[1:4], strict=True))


class _Timed(NamedTuple):
    shape: tuple[int, int, int]  # width, tokens, images
    seconds: tuple[float, ...]  # of each part


class _Probe(NamedTuple):
    at: tuple[float, float, float]  # octaves of width, tokens, rows
    factor: float  # measured by reckoned


class Rates:
    """Seconds of the parts of a block.

    Args:
        compute: what the probes found.
    """

    def __init__(self, compute: Compute) -> None:
        self.guessed = not compute.block_costs
        self.gemm = compute.gemm_flops.get("fp32") or None
        bf16 = compute.gemm_flops.get("bf16")
        self._bf16_speedup = bf16 / self.gemm if bf16 and self.gemm else 1.0
        self.compute = compute
        self.tensors = TensorPrices(compute)
        self._prices: dict[tuple[Part, str], Prices] = {}
        self._probes: dict[tuple[Part, str], list[_Probe]] = {}
        self._known: dict[tuple[object, ...], float | None] = {}
        for way in ("eager", "lean", "lean-bf16"):
            self._learn(way, _timed(compute.block_costs, way))
        usual: tuple[Way, ...] = ("eager", "lean")
        for way in usual:
            self._learn_tight(way, _timed(compute.block_costs, f"{way}-tight"))

    def _learn(self, way: str, timed: Sequence[_Timed]) -> None:
        """Prices of the parts one after the other, then what they leave of each probe."""
        if not timed:
            return
        so_far = [0.0] * len(timed)  # reckoned, of the parts priced already
        for place, part in enumerate(PARTS):
            wholes = [sum(probe.seconds[: place + 1]) for probe in timed]
            rows = [[term / whole for term in _terms(*probe.shape)] for probe, whole in zip(timed, wholes, strict=True)]
            targets = [1 - done / whole for done, whole in zip(so_far, wholes, strict=True)]
            self._prices[part, way] = prices = Prices(*_least_squares(rows, targets))
            so_far = [done + prices.seconds(*probe.shape) for done, probe in zip(so_far, timed, strict=True)]
        for parts in (PARTS[:1], PARTS[1:]):
            found = []
            for probe in timed:
                took = sum(probe.seconds[PARTS.index(part)] for part in parts)
                reckoned = sum(self._prices[part, way].seconds(*probe.shape) for part in parts)
                factor = took / reckoned if reckoned > 0 else 1.0
                found.append(_Probe(_octaves(*probe.shape), min(_MOST_FACTOR, max(1 / _MOST_FACTOR, factor))))
            for part in parts:
                self._probes[part, way] = found

    def _learn_tight(self, way: Way, timed: Sequence[_Timed]) -> None:
        """How much longer blocks take under the lean allocator, forward and backward, by their width alone.

        Not by the images: a search takes for granted that more at a time don't take longer each.
        """
        for parts in (PARTS[:1], PARTS[1:]):
            found = []
            for probe in timed:
                usual = sum(self.seconds(part, way, *probe.shape) or 0.0 for part in parts)
                took = sum(probe.seconds[PARTS.index(part)] for part in parts)
                if usual > 0:
                    at = (math.log2(probe.shape[0]), 0.0, 0.0)
                    found.append(_Probe(at, min(_MOST_TIGHT, max(1.0, took / usual))))
            for part in parts:
                self._probes[part, f"{way}-tight"] = found

    def tight(self, part: Part, way: Way, width: int) -> float:
        """How many times as long a part of a block takes under the lean allocator."""
        if self.compute.device == "cuda":  # whose memory torch's own allocator keeps
            return 1.0
        exact = "lean" if way == "lean-bf16" else way
        probes = self._probes.get((part, f"{exact}-tight"))
        if not probes:
            return _TIGHT[exact]
        key = ("tight", part, exact, width)
        found = self._known.get(key)
        if found is None:  # far from any as those that suffer least, the largest
            elsewhere = (_UNPROBED**2, min(probe.factor for probe in probes))
            found = self._known[key] = _interpolated(probes, (math.log2(width), 0.0, 0.0), elsewhere)
        return found

    @property
    def known(self) -> bool:
        """Whether anything was timed."""
        return bool(self._prices) or self.gemm is not None

    def quicker_in_bf16(self, width: int, tokens: float, images: float) -> bool:
        """Whether the lean trainer's forward pass is noticeably faster with products in bf16; both must be timed."""
        if any(("forward", way) not in self._prices for way in ("lean", "lean-bf16")):
            return False
        exact = self.seconds("forward", "lean", width, tokens, images)
        short = self.seconds("forward", "lean-bf16", width, tokens, images)
        return exact is not None and short is not None and short < _NOTICEABLY * exact

    def seconds(
        self, part: Part, way: Way, width: int, tokens: float, images: float, share: float = 1.0, seldom: float = 1.0
    ) -> float | None:
        """Time of a part of a block on so many images, passed together.

        Args:
            part: of a training step.
            way: which trainer, in which arithmetic.
            width: of the model.
            tokens: an image, prefix included.
            images: that pass together.
            share: of the work with tokens that has to be done.
            seldom: how often the MLP is run for once that attention is.

        Returns:
            None where nothing was timed.
        """
        key = (part, way, width, tokens, images, share, seldom)
        if key not in self._known:
            self._known[key] = self._seconds(part, way, width, tokens, images, share, seldom)
        return self._known[key]

    def _seconds(
        self, part: Part, way: Way, width: int, tokens: float, images: float, share: float, seldom: float
    ) -> float | None:
        if tokens <= 0 or images <= 0:
            return 0.0
        speedup = 1.0
        found = (part, way)
        if found not in self._prices and way == "lean-bf16":
            found, speedup = (part, "lean"), self._bf16_speedup
        if found not in self._prices:
            found = (part, "eager")
        prices = self._prices.get(found)
        if prices is None:
            flops = images * tokens * (_PRODUCT_FLOPS * width**2 + _ATTENTION_FLOPS[part] * tokens * width)
            return None if not self.gemm else share * flops / (self.gemm * _BLOCK_SHARE_OF_GEMM)
        prices = prices._replace(products=prices.products / speedup)
        return self._factor(found, _octaves(width, tokens, images)) * prices.seconds(
            width, tokens, images, share, seldom
        )

    def _factor(self, found: tuple[Part, str], at: tuple[float, float, float]) -> float:
        """What probes of similar shapes took, by what their prices say."""
        return _interpolated(self._probes[found], at, (_UNPROBED**2, 1.0))


def _interpolated(probes: Sequence[_Probe], at: tuple[float, float, float], elsewhere: tuple[float, float]) -> float:
    """The factor of probes near by; far from any, `elsewhere`, which has a weight and a factor."""
    total, log = elsewhere[0], elsewhere[0] * math.log(elsewhere[1])
    for probe in probes:
        distance = sum((here - there) ** 2 for here, there in zip(at, probe.at, strict=True))
        weight = 1 / (1e-6 + distance) ** 2
        total += weight
        log += weight * math.log(probe.factor)
    return math.exp(log / total)


def _timed(costs: Sequence[BlockCost], way: str) -> list[_Timed]:
    """The shapes of which every part was timed."""
    shapes: dict[tuple[int, int, int], dict[str, float]] = {}
    for cost in costs:
        if cost.lever == way and cost.seconds > 0:
            shapes.setdefault((cost.width, cost.tokens, cost.batch_size), {})[cost.part] = cost.seconds
    whole = [(shape, parts) for shape, parts in shapes.items() if len(parts) == len(PARTS)]
    return [_Timed(shape, tuple(parts[part] for part in PARTS)) for shape, parts in whole]


def _terms(width: int, tokens: float, images: float) -> tuple[float, ...]:
    rows = images * tokens
    return 1.0, rows * width, rows * width * width, rows * tokens * width, float(width * width)


def _octaves(width: int, tokens: float, images: float) -> tuple[float, float, float]:
    return math.log2(width), math.log2(tokens), math.log2(max(1.0, images * tokens))


def _least_squares(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """Coefficients x ≥ 0 for which rows · x is nearly the targets; the most negative is left out until none is."""
    count = len(rows[0])
    scales = [math.sqrt(sum(row[column] ** 2 for row in rows)) or 1.0 for column in range(count)]
    unit = [[value / scale for value, scale in zip(row, scales, strict=True)] for row in rows]
    used = list(range(count))
    while used:
        matrix = [[sum(row[i] * row[j] for row in unit) + (_RIDGE if i == j else 0.0) for j in used] for i in used]
        right = [sum(row[i] * target for row, target in zip(unit, targets, strict=True)) for i in used]
        found = _solve(matrix, right)
        worst = min(range(len(used)), key=lambda place: found[place])
        if found[worst] >= 0:
            break
        del used[worst]
    solution = [0.0] * count
    for column, value in zip(used, found if used else [], strict=True):
        solution[column] = value / scales[column]
    return solution


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination of a small symmetric positive system."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(column + 1, size):
            share = rows[row][column] / rows[column][column]
            rows[row] = [mine - share * theirs for mine, theirs in zip(rows[row], rows[column], strict=True)]
    solution = [0.0] * size
    for row in reversed(range(size)):
        known = sum(rows[row][column] * solution[column] for column in range(row + 1, size))
        solution[row] = (rows[row][size] - known) / rows[row][row]
    return solution
