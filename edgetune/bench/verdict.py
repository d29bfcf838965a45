"""What edgetune wins and loses against each other method of a benchmark, and by how much."""

from __future__ import annotations

from edgetune.bench.records import Bench, MethodRow, Settings, Spread

OURS = "edgetune"
_FIGURES = {
    "memory": "above_baseline_bytes",
    "time per epoch": "epoch_s",
    "first epoch": "first_epoch_s",
    "later epochs": "later_epoch_s",
    "whole process": "total_s",
    "joules per epoch": "epoch_j",
    "accuracy": "accuracy",
}
_BEFORE_JOULES = ("above_baseline_bytes", "epoch_s", "first_epoch_s", "later_epoch_s", "total_s")
HEADS = ("edgetune against", "memory", "time", "first", "later", "whole", "joules", "points")


def verdict_cells(bench: Bench) -> list[list[str]]:
    """Edgetune's figures divided by each other method's, and how many points more accurate it is.

    Empty where there is no `edgetune` among the methods, or nobody to hold it against.
    """
    ours = next((row for row in bench.methods if row.entry.name == OURS and row.runs), None)
    if ours is None:
        return []
    return [_against(ours, row, bench.settings) for row in bench.methods if row is not ours and row.runs]


def losses(bench: Bench) -> str | None:
    """One sentence: who needs less than edgetune of what, or is more accurate, and by how much; None without rows."""
    ours = next((row for row in bench.methods if row.entry.name == OURS and row.runs), None)
    others = [row for row in bench.methods if row is not ours and row.runs]
    if ours is None or not others:
        return None
    found, held = [], []
    for what, name in _FIGURES.items():
        if name == "accuracy" and bench.settings.made_up:
            continue
        mine: Spread | None = getattr(ours, name)
        known = [row for row in others if getattr(row, name)]
        if name == "epoch_j":
            known = [row for row in known if row.energy_scope == ours.energy_scope]  # of the same thing
        if mine is None or not known:
            continue
        held.append(what if len(known) == len(others) else f"{what} ({len(known)} of {len(others)} are known)")
        behind = [(row, _behind(ours, row, name)) for row in known]
        ahead = [f"`{row.entry.name}` ({by}{_mark(ours, row, name)})" for row, by in behind if by is not None]
        if ahead:
            found.append(f"in {what} to {', '.join(ahead)}")
    if found:
        return f"`edgetune` loses {'; '.join(found)}."
    return f"`edgetune` loses to none of them in {', '.join(held)}." if held else None


def _mark(ours: MethodRow, row: MethodRow, name: str) -> str:
    return ", modelled" if name == "epoch_j" and False in (ours.energy_measured, row.energy_measured) else ""


def _behind(ours: MethodRow, row: MethodRow, name: str) -> str | None:
    """By how much edgetune loses: points of accuracy, else how many times as much it needs; None where it doesn't."""
    mine, theirs = getattr(ours, name).median, getattr(row, name).median
    if name == "accuracy":
        return f"{100 * (theirs - mine):.1f} points" if theirs > mine else None
    times = ours.by(row, name)
    if times is None:
        return "where nothing was needed" if mine > theirs else None
    return f"{times:.2f} times as much" if times > 1 else None


def _against(ours: MethodRow, row: MethodRow, settings: Settings) -> list[str]:
    points = "—"
    if ours.accuracy and row.accuracy and not settings.made_up:
        points = f"{100 * (ours.accuracy.median - row.accuracy.median):+.1f}"
    joules = "—"
    if ours.by(row, "epoch_j") is not None:
        joules = _times(ours, row, "epoch_j") + ("*" if False in (ours.energy_measured, row.energy_measured) else "")
    return [
        row.entry.name,
        *(_times(ours, row, name) for name in _BEFORE_JOULES),
        joules,
        points,
    ]


def _times(ours: MethodRow, row: MethodRow, name: str) -> str:
    found = ours.by(row, name)
    return "—" if found is None else f"{found:.2f}"
