"""`metrics.jsonl` read for drawing: any length of run in bounded memory, any state of the file.

A run of a million steps is drawn with a few hundred points, so steps are gathered into bins while reading. A file cut
in the middle of a line, lines of a newer edgetune and figures that are not numbers are all normal here: what can be
used is used, and what can't is counted.
"""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

FINE_BINS = 600  # points of a curve: more than the pixels of a chart would show
COARSE_BINS = 96  # columns of a heat map
_MOST_EVENTS = 200
_LARGEST = 1e300  # larger figures are no measurements, and their sums would overflow

_Row = dict[str, Any]


class Tally:
    """Mean and extremes of the finite numbers it was given."""

    __slots__ = ("count", "high", "low", "total")

    def __init__(self) -> None:
        self.count, self.total = 0, 0.0
        self.low: float = math.inf
        self.high: float = -math.inf

    def add(self, value: object) -> None:
        """Take a number in; anything else is passed over."""
        if (type(value) is float or type(value) is int) and -_LARGEST < value < _LARGEST:  # NaN is not between anything
            self.count += 1
            self.total += value
            if value < self.low:
                self.low = value
            if value > self.high:
                self.high = value

    @property
    def mean(self) -> float | None:
        """None where no number came."""
        return self.total / self.count if self.count else None

    @property
    def least(self) -> float | None:
        """The smallest number."""
        return self.low if self.count else None

    @property
    def most(self) -> float | None:
        """The largest number."""
        return self.high if self.count else None


@dataclass
class Bin:
    """Consecutive steps drawn as one point or column."""

    first_step: int
    last_step: int
    steps: int = 0
    values: dict[str, Tally] = field(default_factory=dict)
    tokens: list[Tally] = field(default_factory=list)
    budgets: list[Tally] = field(default_factory=list)
    trained: list[Tally] = field(default_factory=list)

    def of(self, name: str) -> Tally:
        """The tally of one figure; an empty one where it never came."""
        return self.values.get(name) or Tally()


@dataclass(frozen=True)
class Event:
    """Something that happened at a step: a governor change, an unreadable image, a pause."""

    step: int | None
    name: str
    message: str


@dataclass
class Metrics:
    """What a run wrote while it ran. `fine` is for curves, `coarse` for heat maps."""

    fine: list[Bin] = field(default_factory=list)
    coarse: list[Bin] = field(default_factory=list)
    epochs: list[_Row] = field(default_factory=list)  # one row per epoch, in order
    accuracies: dict[int, float] = field(default_factory=dict)  # recorded between epochs' ends, by step
    events: list[Event] = field(default_factory=list)
    events_left_out: int = 0
    unreadable_lines: int = 0

    @property
    def last_step(self) -> int | None:
        """The last step recorded."""
        return self.fine[-1].last_step if self.fine else None

    @property
    def downsampled(self) -> bool:
        """Whether a point of a curve stands for more than one recorded step."""
        return any(bin.steps > 1 for bin in self.fine)


_FIGURES = ("loss", "lr", "images_per_s", "memory_bytes", "power_w", "k")


def finite(value: object) -> float | None:
    """`value` as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def read_metrics(path: Path, blocks: int) -> Metrics:
    """Read a run's metrics; `blocks` is the model's depth. A missing file gives empty metrics."""
    metrics = Metrics()
    seen = array("q")
    epochs: dict[int, _Row] = {}
    for row in _rows(path, metrics):
        step = _step(row)
        if row.get("kind") == "step" and step is not None:
            seen.append(step)
        elif row.get("kind") == "epoch" and finite(row.get("epoch")) is not None:
            epochs[int(row["epoch"])] = row  # an epoch run again after a resume replaces the first record
        elif row.get("kind") == "accuracy" and step is not None:
            accuracy = finite(row.get("val_accuracy"))
            if accuracy is not None:
                metrics.accuracies[step] = accuracy
        elif row.get("kind") == "event":
            if len(metrics.events) < _MOST_EVENTS:
                metrics.events.append(Event(step, str(row.get("event", "event")), str(row.get("message", ""))))
            else:
                metrics.events_left_out += 1
    metrics.epochs = [epochs[epoch] for epoch in sorted(epochs)]
    steps = sorted(set(seen))
    metrics.fine, metrics.coarse = _bins(steps, FINE_BINS), _bins(steps, COARSE_BINS)
    if not steps:
        return metrics
    fine_starts = [bin.first_step for bin in metrics.fine]
    coarse_starts = [bin.first_step for bin in metrics.coarse]
    for row in _rows(path, None):  # the second pass: bin edges are known only now
        step = _step(row)
        if row.get("kind") != "step" or step is None:
            continue
        if (place := bisect_right(fine_starts, step) - 1) >= 0:
            _add_figures(metrics.fine[place], row)
        if (place := bisect_right(coarse_starts, step) - 1) >= 0:
            _add_blocks(metrics.coarse[place], row, blocks)
    return metrics


def _rows(path: Path, metrics: Metrics | None) -> Iterator[_Row]:
    """Every line that is a JSON object; the others are counted in `metrics`."""
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                row = _decoded(line)
                if isinstance(row, dict):
                    yield row
                elif metrics is not None and line.strip():
                    metrics.unreadable_lines += 1
    except FileNotFoundError:
        return


def _decoded(line: str) -> Any:
    """A line's value, None where it is not JSON. NaN, which JSON does not have but Python writes, is taken."""
    try:
        return msgspec.json.decode(line)  # ten times as fast as json
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _step(row: _Row) -> int | None:
    step = finite(row.get("step"))
    return int(step) if step is not None and 0 <= step < 2**53 else None


def _bins(steps: list[int], most: int) -> list[Bin]:
    """At most `most` bins of equally many recorded steps."""
    size = max(1, math.ceil(len(steps) / most))
    return [Bin(group[0], group[-1]) for group in (steps[i : i + size] for i in range(0, len(steps), size))]


def _add_figures(bin: Bin, row: _Row) -> None:
    bin.steps += 1
    for name in _FIGURES:
        if row.get(name) is not None:
            bin.values.setdefault(name, Tally()).add(row[name])


def _add_blocks(bin: Bin, row: _Row, blocks: int) -> None:
    bin.steps += 1
    for tallies, values in ((bin.tokens, row.get("tokens_per_block")), (bin.budgets, row.get("budgets"))):
        if isinstance(values, list):
            _add_each(tallies, values[:blocks])
    trained = row.get("trained_blocks")
    if isinstance(trained, list):
        indices = {int(index) for index in trained if finite(index) is not None}
        _add_each(bin.trained, [float(index in indices) for index in range(blocks)])


def _add_each(tallies: list[Tally], values: list[Any]) -> None:
    tallies.extend(Tally() for _ in range(len(values) - len(tallies)))
    for tally, value in zip(tallies, values, strict=False):
        tally.add(value)
