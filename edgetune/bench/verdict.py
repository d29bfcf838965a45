"""What edgetune wins and loses against each other method of a benchmark, and by how much."""

from __future__ import annotations

from edgetune.bench.records import Bench, MethodRow, Spread

OURS = "edgetune"
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
    """One sentence: who needs less memory, less time, or is more accurate than edgetune; None without rows."""
    ours = next((row for row in bench.methods if row.entry.name == OURS and row.runs), None)
    others = [row for row in bench.methods if row is not ours and row.runs]
    if ours is None or not others:
        return None
    found = []
    for what, name, most in (
        ("in memory", "above_baseline_bytes", False),
        ("in time per epoch", "epoch_s", False),
        ("in later epochs", "later_epoch_s", False),
        ("in accuracy", "accuracy", True),
    ):
        mine: Spread | None = getattr(ours, name)
        ahead = [
            f"`{row.entry.name}`"
            for row in others
            if mine and (theirs := getattr(row, name)) and _ahead(theirs.median, mine.median, most)
        ]
        if ahead:
            found.append(f"{what} to {', '.join(ahead)}")
    return f"`edgetune` loses {'; '.join(found)}." if found else "`edgetune` loses to none of them in any figure."


def _ahead(theirs: float, mine: float, most: bool) -> bool:
    return theirs > mine if most else theirs < mine


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
