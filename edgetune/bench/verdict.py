"""What edgetune wins and loses against each other method of a benchmark, and by how much."""

from __future__ import annotations

from edgetune.bench.records import Bench, MethodRow, Spread

OURS = "edgetune"
_FIGURES = {
    "memory": "above_baseline_bytes",
    "time per epoch": "epoch_s",
    "later epochs": "later_epoch_s",
    "joules per epoch": "epoch_j",
    "accuracy": "accuracy",
}
HEADS = ("edgetune against", "memory", "time", "later", "joules", "points")


def verdict_cells(bench: Bench) -> list[list[str]]:
    """Edgetune's medians divided by each other method's, and how many points more accurate it is.

    Empty where there is no `edgetune` among the methods, or nobody to hold it against.
    """
    ours = next((row for row in bench.methods if row.entry.name == OURS and row.runs), None)
    if ours is None:
        return []
    return [_against(ours, row) for row in bench.methods if row is not ours and row.runs]


def losses(bench: Bench) -> str | None:
    """One sentence: who needs less than edgetune of what, or is more accurate, and by how much; None without rows."""
    ours = next((row for row in bench.methods if row.entry.name == OURS and row.runs), None)
    others = [row for row in bench.methods if row is not ours and row.runs]
    if ours is None or not others:
        return None
    found, held = [], []
    for what, name in _FIGURES.items():
        mine: Spread | None = getattr(ours, name)
        known = [(row, theirs) for row in others if mine and (theirs := getattr(row, name))]
        if mine is None or not known:
            continue
        held.append(what)
        ahead = [
            f"`{row.entry.name}` ({_behind(mine.median, theirs.median, name)}{_mark(ours, row, name)})"
            for row, theirs in known
            if (theirs.median > mine.median if name == "accuracy" else theirs.median < mine.median)
        ]
        if ahead:
            found.append(f"in {what} to {', '.join(ahead)}")
    if found:
        return f"`edgetune` loses {'; '.join(found)}."
    return f"`edgetune` loses to none of them in {', '.join(held)}." if held else None


def _mark(ours: MethodRow, row: MethodRow, name: str) -> str:
    return ", modelled" if name == "epoch_j" and False in (ours.energy_measured, row.energy_measured) else ""


def _behind(mine: float, theirs: float, name: str) -> str:
    """By how much edgetune loses: points of accuracy, else how many times as much it needs."""
    if name == "accuracy":
        return f"{100 * (theirs - mine):.1f} points"
    return f"{mine / theirs:.2f} times as much" if theirs > 0 else "where nothing was needed"


def _against(ours: MethodRow, row: MethodRow) -> list[str]:
    points = "—"
    if ours.accuracy and row.accuracy:
        points = f"{100 * (ours.accuracy.median - row.accuracy.median):+.1f}"
    joules = "—"
    if ours.epoch_j and row.epoch_j:
        joules = _ratio(ours.epoch_j, row.epoch_j) + (
            "*" if False in (ours.energy_measured, row.energy_measured) else ""
        )
    return [
        row.entry.name,
        _ratio(ours.above_baseline_bytes, row.above_baseline_bytes),
        _ratio(ours.epoch_s, row.epoch_s),
        _ratio(ours.later_epoch_s, row.later_epoch_s),
        joules,
        points,
    ]


def _ratio(ours: Spread | None, theirs: Spread | None) -> str:
    return f"{ours.median / theirs.median:.2f}" if ours and theirs and theirs.median > 0 else "—"
