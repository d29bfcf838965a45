"""What every power source answers, and what all share: which figures are believable, which rails add up.

A source reads watts; what they stand for is its `scope`, because no two boards meter the same wire. Unknown is None: a
disabled channel, a gated rail and a vanished chip are never 0 W.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from edgetune.device.catalogue import TotalRule
from edgetune.device.system import System

MOST_W = 2000.0  # above any edge board and any host's package; what exceeds it is a broken file, not a load


class Reading(NamedTuple):
    """One look at a sensor. `rails` lists everything it reports, whether or not it counts towards the total."""

    total_w: float | None
    rails: Mapping[str, float | None] = {}
    corrected_w: float | None = None  # the total after a published correction


@runtime_checkable
class PowerSource(Protocol):
    """Something that says how many watts flow now.

    `scope` is one of module, module-rails, board-input, pmic-sum, cpu-package, gpu, battery, wall and estimate;
    `measured` is False where a model or a constant stands in for a sensor.
    """

    @property
    def name(self) -> str: ...

    @property
    def scope(self) -> str: ...

    @property
    def measured(self) -> bool: ...

    def read(self) -> Reading: ...


@runtime_checkable
class EnergyCounter(Protocol):
    """A source that counts joules itself; windows then subtract counts instead of summing watts."""

    def read_j(self) -> float | None:
        """Joules since an arbitrary start, never falling, or None where the counter can't be read now."""
        ...


@dataclass(frozen=True)
class Facts:
    """What a source can say about itself beside its watts; `describe_power` puts it into the profile."""

    model: str | None = None  # of the figure, or of its correction, where a published model made it
    interval_s: float | None = None  # the sensor's own averaging window
    notes: tuple[str, ...] = ()


def total_w(rule: TotalRule | None, rails: Mapping[str, float | None]) -> float | None:
    """The sum of a rule's rails; every other rail is left out, whatever its name suggests."""
    return None if rule is None else sum_known(rails.get(name) for name in rule.rails)


def total_facts(rule: TotalRule | None, names: Iterable[str]) -> tuple[str, ...]:
    """How a total came about, and what is listed without being part of it."""
    if rule is None:
        return (f"no rule says which of {', '.join(names)} make the total: none is added",)
    notes = [f"total = {' + '.join(rule.rails)}" + ("" if rule.verified else ", unverified")]
    if rule.note:
        notes.append(rule.note)
    if others := [name for name in names if name not in rule.rails]:
        notes.append(f"listed, not part of the total: {', '.join(others)}")
    return tuple(notes)


def sum_known(values: Iterable[float | None]) -> float | None:
    """The sum, or None as soon as one part is unknown: a partial sum looks like a smaller board."""
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total


@dataclass
class Judge:
    """Takes readings that can't be true for unknown, and says so once per file however long it goes on."""

    system: System
    _told: set[str] = field(default_factory=set)

    def believable(self, path: str, watts: float | None) -> float | None:
        """`watts`, read from `path`, or None where they are negative or absurd."""
        if watts is None:
            return None
        if 0.0 <= watts <= MOST_W:
            return watts
        said = "negative" if watts < 0 else "not believable"
        self.warn_once(path, f"{path} says {watts:.6g} W, which is {said}; what it measures is unknown.")
        return None

    def believable_total(self, path: str, watts: float | None) -> float | None:
        """The same for a board's total, which is never 0 while something reads it; a single rail may be off."""
        watts = self.believable(path, watts)
        if watts == 0.0:
            self.warn_once(f"{path} 0", f"{path} says that the whole draws 0 W, which can't be; its power is unknown.")
            return None
        return watts

    def warn_once(self, path: str, sentence: str) -> None:
        """Note the first trouble with a file."""
        if path not in self._told:
            self._told.add(path)
            self.system.warn(sentence)
