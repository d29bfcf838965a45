"""What a page's charts show, as data: the drawing is uPlot's, in the browser (`assets/charts.js`).

A chart is described fully in Python (values already in the unit its axis names), so that the script stays free of
meaning and every page can use the same four forms: lines over steps, epochs or seconds, heat maps of blocks over steps,
points in a plane, and bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from edgetune.report.markup import Html, element

Values = list[float | None]


class Line(msgspec.Struct, kw_only=True):
    """One series. `low` and `high` are the edges of a band, drawn faintly and without a legend entry."""

    label: str
    values: Values
    color: str  # a CSS custom property of the page: c1, c2, …
    style: Literal["line", "points", "low", "high"] = "line"


class Mark(msgspec.Struct, kw_only=True):
    """A level across the chart, such as a cap."""

    label: str
    value: float
    color: str


class Chart(msgspec.Struct, kw_only=True):
    """Lines over one x axis."""

    id: str
    title: str
    caption: str
    x_label: str
    unit: str
    x: Sequence[float]
    lines: list[Line]
    marks: list[Mark] = []
    event_steps: list[int] = []
    from_zero: bool = False
    most: float | None = None  # nothing can be above this
    kind: Literal["lines"] = "lines"


class Heat(msgspec.Struct, kw_only=True):
    """Blocks over steps. `edges` bound the columns; the first of `rows` is the block next to the image."""

    id: str
    title: str
    caption: str
    unit: str
    edges: list[float]
    rows: list[Values]
    low: float
    high: float
    kind: Literal["heat"] = "heat"


class Point(msgspec.Struct, kw_only=True):
    """A point in a plane, known by its number; `low` and `high` are the ends of its spread."""

    number: int
    label: str
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    color: str
    modelled: bool = False  # drawn hollow


class Scatter(msgspec.Struct, kw_only=True):
    """Points in a plane. `front` are the places of those that no other one beats, from left to right."""

    id: str
    title: str
    caption: str
    x_label: str
    unit: str  # of y, as its axis names it
    points: list[Point]
    front: list[int]
    kind: Literal["scatter"] = "scatter"


class Bar(msgspec.Struct, kw_only=True):
    """A bar; `low` and `high` are the ends of its spread."""

    label: str
    value: float
    low: float
    high: float
    color: str
    modelled: bool = False  # drawn hollow


class Bars(msgspec.Struct, kw_only=True):
    """Bars side by side, the first on top."""

    id: str
    title: str
    caption: str
    unit: str
    bars: list[Bar]
    kind: Literal["bars"] = "bars"


AnyChart: TypeAlias = Chart | Heat | Scatter | Bars


def figure(chart: AnyChart) -> Html:
    """The place where the script draws a chart. Without a script the caption still says what would be there."""
    scale = None
    if isinstance(chart, Heat):
        scale = element(
            "span", figures(chart.low), element("i"), f"{figures(chart.high)} {chart.unit}".strip(), class_="scale"
        )
    return element(
        "figure",
        element("figcaption", element("b", chart.title), " ", element("span", chart.caption, class_="about")),
        element("div", class_="plot", data_chart=chart.id, role="img", aria_label=f"{chart.title}. {chart.caption}"),
        element("div", element("output", class_="readout"), scale, class_="under")
        if isinstance(chart, (Heat, Scatter))
        else None,
        class_=chart.kind,
    )


def figures(value: float) -> str:
    """Four significant figures, as text."""
    return f"{value:.4g}"


def rounded(value: float | None) -> float | None:
    """Five significant figures: more than a screen can show, and half the size of a page with all of them."""
    return None if value is None else float(f"{value:.5g}")


def known(values: Sequence[float | None]) -> list[float]:
    """The values that are there."""
    return [value for value in values if value is not None]
