"""The charts of a benchmark's page: what each method costs and what it gains, as data for the page's script."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgetune.bench.entries import is_peer
from edgetune.bench.records import Bench, MethodRow, Spread
from edgetune.bench.summary import no_joules
from edgetune.report.charts import AnyChart, Bar, Bars, Chart, Line, Point, Scatter

_MIB = 1 << 20
_OURS = "edgetune"
_COLORS = ("c2", "c1", "c3", "c4", "c5", "c6", "c7")
COLOR_OF = {"edgetune": "c2", "other methods of fit": "c3", "peers": "c1"}

_Figure = Callable[[MethodRow], Spread | None]


def charts_of(bench: Bench) -> list[AnyChart]:
    """The charts that there are figures for; without joules, seconds stand in their place."""
    rows = bench.methods
    found: list[AnyChart | None] = [
        _scatter(
            rows,
            id="memory-time",
            title="Memory and time",
            caption="Nothing is better than a method on the dashed line in both. Lower left is better.",
            x=("MiB above the bare process", lambda row: row.above_baseline_bytes, 1 / _MIB),
            y=("s per epoch", lambda row: row.epoch_s, 1.0),
            better_up=False,
        )
    ]
    has_joules = any(row.epoch_j for row in rows)
    if not bench.settings.made_up and _varies([row.accuracy for row in rows]):
        cost: tuple[str, _Figure, float] = ("s per epoch", lambda row: row.epoch_s, 1.0)
        if has_joules:
            cost = ("J per epoch", lambda row: row.epoch_j, 1.0)
        found.append(
            _scatter(
                rows,
                id="accuracy-joules" if has_joules else "accuracy-time",
                title="Accuracy and joules" if has_joules else "Accuracy and time",
                caption="The last epoch's accuracy. Upper left is better."
                + ("" if has_joules else f" No joules: {no_joules(rows)}"),
                x=cost,
                y=("% right", lambda row: row.accuracy, 100.0),
                better_up=True,
            )
        )
    if has_joules:
        found.append(_joules(rows))
    found.append(_bars(rows, "seconds", "Time", "An epoch, the mean of all.", "s per epoch", lambda row: row.epoch_s))
    course = None if bench.settings.made_up else _course(rows, bench.full_accuracy_of)
    memory = _bars(
        rows,
        *("memory", "Memory", "Peak above the bare process.", "MiB"),
        lambda row: row.above_baseline_bytes,
        factor=1 / _MIB,
    )
    return [chart for chart in (*found, memory, course) if chart is not None]


def numbered(bench: Bench) -> dict[str, int]:
    """The number by which charts know a method."""
    return {row.entry.name: number for number, row in enumerate(bench.methods, start=1)}


def family(row: MethodRow) -> str:
    """Which colour a method has."""
    if is_peer(row.entry):
        return "peers"
    return "edgetune" if row.entry.method == _OURS else "other methods of fit"


def _varies(spreads: Sequence[Spread | None]) -> bool:
    known = {spread.median for spread in spreads if spread is not None}
    return len(known) > 1


def _scatter(
    rows: Sequence[MethodRow],
    *,
    id: str,
    title: str,
    caption: str,
    x: tuple[str, _Figure, float],
    y: tuple[str, _Figure, float],
    better_up: bool,
) -> Scatter | None:
    (x_label, x_of, x_factor), (y_label, y_of, y_factor) = x, y
    points = []
    for number, row in enumerate(rows, start=1):
        across, up = x_of(row), y_of(row)
        if across is None or up is None:
            continue
        points.append(
            Point(
                number=number,
                label=row.entry.name,
                x=across.median * x_factor,
                y=up.median * y_factor,
                x_low=across.low * x_factor,
                x_high=across.high * x_factor,
                y_low=up.low * y_factor,
                y_high=up.high * y_factor,
                color=COLOR_OF[family(row)],
                modelled=across is row.epoch_j and row.energy_measured is False,
            )
        )
    if len(points) < 2:
        return None
    front = pareto([(point.x, -point.y if better_up else point.y) for point in points])
    if len(front) == 1 and not better_up:  # no line to draw
        caption = f"{points[front[0]].label} is best in both. Lower left is better."
    if any(point.modelled for point in points):
        caption += " Hollow: joules are modelled."
    return Scatter(id=id, title=title, caption=caption, x_label=x_label, unit=y_label, points=points, front=front)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other one is as good as in both and better than in one; less is better."""
    order = sorted(range(len(points)), key=lambda place: points[place])
    front: list[int] = []
    for place in order:
        if not front or points[place][1] < points[front[-1]][1]:
            front.append(place)
    return front


def _joules(rows: Sequence[MethodRow]) -> Bars | None:
    modelled = any(row.energy_measured is False for row in rows)
    caption = "Gross joules of an epoch, the mean of all." + (" *: modelled, not measured." if modelled else "")
    return _bars(rows, "joules", "Joules", caption, "J per epoch", lambda row: row.epoch_j, energy=True)


def _bars(
    rows: Sequence[MethodRow],
    id: str,
    title: str,
    caption: str,
    unit: str,
    figure: _Figure,
    *,
    factor: float = 1.0,
    energy: bool = False,
) -> Bars | None:
    bars = [
        Bar(
            label=row.entry.name,
            value=spread.median * factor,
            low=spread.low * factor,
            high=spread.high * factor,
            color=COLOR_OF[family(row)],
            modelled=energy and row.energy_measured is False,
        )
        for row in rows
        if (spread := figure(row)) is not None
    ]
    return Bars(id=id, title=title, caption=caption, unit=unit, bars=bars) if bars else None


def _course(rows: Sequence[MethodRow], full: str | None) -> Chart | None:
    """Accuracy over training time: as many methods as there are colours, edgetune and full fine-tuning first."""
    first = [_OURS, full]
    ranked = sorted(
        (row for row in rows if row.curve),
        key=lambda row: first.index(row.entry.name) if row.entry.name in first else len(first),
    )
    drawn = ranked[: len(_COLORS)]
    if not drawn:
        return None
    x = sorted({round(point.train_s, 2) for row in drawn for point in row.curve})
    lines = []
    for row, color in zip(drawn, _COLORS, strict=False):
        known = {round(point.train_s, 2): 100 * point.accuracy for point in row.curve}
        lines.append(Line(label=row.entry.name, values=[known.get(moment) for moment in x], color=color))
    left_out = sum(bool(row.curve) for row in rows) - len(drawn)
    more = f" {left_out} more are left out." if left_out else ""
    return Chart(
        id="course",
        title="Accuracy while training",
        caption="Of the first repetition that ended well, over seconds of training; evaluations are in none of them."
        + more,
        x_label="s",
        unit="%",
        x=x,
        lines=lines,
        most=100.0,
    )
