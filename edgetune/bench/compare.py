"""`edgetune bench --compare A.json B.json`: two benchmarks of the same thing, of two machines or two versions.

Times, memory and joules of the two stand side by side with the second over the first. Ratios that were formed within
each benchmark are compared too: what they say holds on both machines, which absolute figures do not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgetune import __version__
from edgetune.bench.page import MODELLED, joules_text, machine_lines, markdown_table, title
from edgetune.bench.records import DIGESTS, Bench, MethodRow, Spread
from edgetune.errors import InputError
from edgetune.report.markup import Html, element, join, note, section, table
from edgetune.report.page import page
from edgetune.schema import load

# What must agree for the figures to be of the same thing.
_SAME = ("model", "image_size", "batch_size", "epochs", "train_images", "augment", "flip")
_WORTH_SAYING = ("threads", "data", "weights", "seed", "evaluate_steps", "power_w", "classes", "val_images")
_MIB = 1 << 20
_KNOWN = {True: "measured", False: "modelled", None: "unknown"}

Tables = list[tuple[str, tuple[str, ...], list[list[str]]]]


class Comparison:
    """Two benchmarks and the methods they share.

    Args:
        first, second: `bench.json` files.

    Raises:
        InputError: one can't be read, they are of different things, or share no method.
    """

    def __init__(self, first: Path, second: Path) -> None:
        self.first, self.second = load(first, Bench), load(second, Bench)
        ours, theirs = self.first.settings, self.second.settings
        differing = [name for name in _SAME if getattr(ours, name) != getattr(theirs, name)]
        if differing:
            name = differing[0]
            raise InputError(
                f"--compare: {first} has {name} {getattr(ours, name)} and {second} {getattr(theirs, name)}: they can't"
                " be compared."
            )
        others = {row.entry.name: row for row in self.second.methods}
        self.pairs = [(row, others[row.entry.name]) for row in self.first.methods if row.entry.name in others]
        if not self.pairs:
            raise InputError(f"--compare: {first} and {second} have no method in common.")
        self.notes = [
            f"{name} differs: {getattr(ours, name)} in A, {getattr(theirs, name)} in B."
            for name in _WORTH_SAYING
            if getattr(ours, name) != getattr(theirs, name)
        ]
        digests = {what: {getattr(ours, name), getattr(theirs, name)} for name, what in DIGESTS.items()}
        self.notes += [
            f"{what} differ, whatever they are called."
            for what, found in digests.items()
            if len(found) == 2 and None not in found
        ]
        self.notes += [
            f"{one.entry.name} is run with other arguments in B."
            for one, other in self.pairs
            if (one.entry.arguments, one.entry.environment) != (other.entry.arguments, other.entry.environment)
        ]
        known = {(one.energy_measured, other.energy_measured) for one, other in self.pairs}
        self.notes += [
            f"joules are {_KNOWN[a]} in A and {_KNOWN[b]} in B." for a, b in sorted(known, key=str) if a is not b
        ]
        scopes = {(one.energy_scope, other.energy_scope) for one, other in self.pairs if one.epoch_j and other.epoch_j}
        self.notes += [
            f"joules are of different things: {a} in A, {b} in B." for a, b in sorted(scopes, key=str) if a != b
        ]

    @property
    def title(self) -> str:
        """What was compared."""
        return f"A and B: {title(self.first)}"

    def tables(self) -> Tables:
        """Absolute figures with B over A, then each one's own ratios."""
        heads = ("method", "A", "B", "B ÷ A")
        figures: list[tuple[str, Callable[[MethodRow], Spread | None], Callable[[float], str], bool]] = [
            ("Peak above the bare process, MiB", lambda row: row.above_baseline_bytes, _mib, False),
            ("Seconds per epoch", lambda row: row.epoch_s, _three, False),
            ("First epoch, s", lambda row: row.first_epoch_s, _three, False),
            ("Later epochs, s", lambda row: row.later_epoch_s, _three, False),
            ("Whole process, s", lambda row: row.total_s, _three, False),
            ("Joules per epoch", lambda row: row.epoch_j, _three, True),
            ("Joules per epoch above idle", lambda row: row.net_epoch_j, _three, True),
            ("Share of the machine's rate of matrix products", lambda row: row.gemm_share, _modelled_percent, False),
        ]
        found: Tables = []
        for name, figure, text, energy in figures:
            rows = [_row(one, other, figure, text, energy=energy) for one, other in self.pairs]
            if any(row[1:3] != ["—", "—"] for row in rows):
                found.append((name, heads, rows))
        if not (self.first.settings.made_up or self.second.settings.made_up):  # on which every method is right
            accuracy = [_accuracies(one, other) for one, other in self.pairs]
            found.append(("Accuracy, %", ("method", "A", "B", "B − A, points"), accuracy))
        if self.first.memory_baseline and self.second.memory_baseline:
            own = [[one.entry.name, *_own(one), *_own(other)] for one, other in self.pairs]
            columns = ("method", "memory, A", "time, A", "memory, B", "time, B")
            by = [f"{letter}: {_baselines(made)}" for letter, made in (("A", self.first), ("B", self.second))]
            found.append((f"Against eager PyTorch, each within its own ({'; '.join(by)})", columns, own))
        return found

    def legend(self) -> list[str]:
        """What A and B are."""
        lines = []
        for letter, made in (("A", self.first), ("B", self.second)):
            lines += [f"{letter}: {line.removeprefix('- ')}" for line in machine_lines(made)]
            lines.append(f"{letter}: {made.repetitions} repetitions, {made.created}. {joules_text(made)}")
        explained = f"Medians, with the lowest and highest in brackets. {MODELLED}: modelled, not measured."
        return [*lines, *self.notes, explained]

    def markdown(self) -> str:
        """All of it as Markdown."""
        lines = [f"# {self.title}", ""]
        for name, heads, rows in self.tables():
            lines += [f"**{name}**", "", *markdown_table(heads, rows), ""]
        return "\n".join([*lines, *(f"- {line}" for line in self.legend())]) + "\n"

    def html(self) -> str:
        """All of it as a page."""
        parts: list[Html] = [element("header", element("h1", self.title))]
        parts += [
            section(name, table(list(heads), rows), id=f"table-{number}")
            for number, (name, heads, rows) in enumerate(self.tables())
        ]
        parts.append(section("What A and B are", *(note(line) for line in self.legend()), id="legend"))
        footer = f"Written by edgetune {__version__}."
        return page(title=f"{self.title} · edgetune", content=join(parts), charts=[], footer=footer)


def _row(
    one: MethodRow,
    other: MethodRow,
    figure: Callable[[MethodRow], Spread | None],
    text: Callable[[float], str],
    *,
    energy: bool,
) -> list[str]:
    found = [figure(one), figure(other)]
    cells = [
        _with_range(spread, text, MODELLED if energy and row.energy_measured is False else "")
        for row, spread in zip((one, other), found, strict=True)
    ]
    a, b = found
    other_joules = energy and one.energy_scope != other.energy_scope
    if a is None or b is None or a.median <= 0 or other_joules:
        return [one.entry.name, *cells, "—"]
    modelled = energy and False in (one.energy_measured, other.energy_measured)
    return [one.entry.name, *cells, f"{b.median / a.median:.2f}" + (MODELLED if modelled else "")]


def _with_range(spread: Spread | None, text: Callable[[float], str], mark: str) -> str:
    """The median, and where the repetitions differ, from where to where."""
    if spread is None:
        return "—"
    low, high = text(spread.low), text(spread.high)
    return text(spread.median) + mark + (f" ({low}–{high})" if low != high else "")


def _baselines(made: Bench) -> str:
    """The eager variants that a benchmark's ratios are formed with."""
    return " and ".join(dict.fromkeys(name for name in (made.memory_baseline, made.time_baseline) if name))


def _accuracies(one: MethodRow, other: MethodRow) -> list[str]:
    a, b = one.accuracy, other.accuracy
    difference = f"{100 * (b.median - a.median):+.1f}" if a and b else "—"
    return [one.entry.name, *("—" if spread is None else f"{100 * spread.median:.1f}" for spread in (a, b)), difference]


def _own(row: MethodRow) -> list[str]:
    ratios = row.to_eager
    values = (ratios.above_baseline, ratios.epoch) if ratios else (None, None)
    return ["—" if value is None else f"{value:.2f}" for value in values]


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / _MIB:.3g}" if size_bytes < 1000 * _MIB else f"{size_bytes / _MIB:.0f}"


def _three(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _modelled_percent(share: float) -> str:
    return f"{share:.0%}{MODELLED}"
