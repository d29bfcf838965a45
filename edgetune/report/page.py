"""`report.html`: one file with everything in it, so that it can be copied off a board and opened anywhere, offline.

The chart library, the styles and the data are in the page itself; its content security policy forbids any request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

import msgspec

from edgetune import __version__
from edgetune.files import write_atomically
from edgetune.report.blocks import blocks_over_time
from edgetune.report.charts import AnyChart, Chart, figure
from edgetune.report.costs import predicted_against_measured, where_memory_went, where_time_went
from edgetune.report.curves import curves
from edgetune.report.details import commands, events_and_warnings, machine, why
from edgetune.report.heats import heats
from edgetune.report.markup import Html, element, join, note, section, text
from edgetune.report.mistakes import mistakes
from edgetune.report.run import Run, read_run
from edgetune.report.summary import data_name, header, headline
from edgetune.report.tradeoff import against_caps, step_table, tradeoff, tradeoff_charts
from edgetune.schema import Plan

_ASSETS = Path(__file__).parent / "assets"
_UPLOT = Path(__file__).parent / "vendor" / "uplot"


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder, from whatever the run has left there so far.

    Args:
        run: the run folder. It must hold a plan; profile, metrics, result and mistakes are used where they exist.

    Returns:
        The path of the page.

    Raises:
        InputError: the folder has no readable plan.json.
        StorageError: the page could not be written.
    """
    path = run / "report.html"
    write_atomically(path, render(read_run(run)).encode("utf-8"))
    return path


def render(run: Run) -> str:
    """The page of a run that has been read."""
    over_time, alternatives = curves(run), tradeoff_charts(run.plan)
    sections = [
        header(run),
        headline(run),
        _curves(run, over_time),
        predicted_against_measured(run),
        where_memory_went(run),
        where_time_went(run),
        blocks_over_time(run),
        mistakes(run),
        tradeoff(run.plan, alternatives),
        why(run.plan),
        events_and_warnings(run),
        machine(run),
        commands(run),
    ]
    return page(
        title=f"{run.plan.model} on {data_name(run.plan)} · edgetune",
        content=join(sections),
        charts=[*over_time, *heats(run), *alternatives],
        footer=f"Run by edgetune {run.plan.edgetune_version}, page by {__version__}. Charts: uPlot, MIT licence.",
    )


def write_plan_page(plan: Plan, path: Path) -> None:
    """Write a page of a plan that has not run: predictions beside caps, its trade-off, its reasons, its settings.

    Raises:
        StorageError: the page could not be written.
    """
    charts = tradeoff_charts(plan)
    title = f"{plan.method}: {plan.model} on {data_name(plan)}"
    head = element("header", element("h1", title))
    content = join([head, against_caps(plan), tradeoff(plan, charts), step_table(plan), why(plan)])
    footer = f"Planned by edgetune {plan.edgetune_version}, page by {__version__}. Charts: uPlot, MIT licence."
    written = page(title=f"{title} · edgetune", content=content, charts=[*charts], footer=footer)
    write_atomically(path, written.encode("utf-8"))


def page(*, title: str, content: Html, charts: Sequence[AnyChart], footer: str) -> str:
    """A whole page around `content`, with the library, the styles and the charts' data inside."""
    template = Template((_ASSETS / "page.html").read_text(encoding="utf-8"))
    licence = (_UPLOT / "LICENSE").read_text(encoding="utf-8")
    return template.substitute(
        title=text(title),
        styles=(_UPLOT / "uPlot.min.css").read_text(encoding="utf-8")
        + (_ASSETS / "report.css").read_text(encoding="utf-8"),
        content=content,
        footer=text(footer),
        charts=embedded_json(charts),
        library=f"/* uPlot\n{licence}\n*/\n" + (_UPLOT / "uPlot.iife.min.js").read_text(encoding="utf-8"),
        script=(_ASSETS / "charts.js").read_text(encoding="utf-8"),
    )


def embedded_json(value: object) -> str:
    """JSON that may stand inside a `<script>` element, whatever strings it holds; NaN and infinities become null."""
    written = msgspec.json.encode(value).decode("utf-8")
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", written)


def _curves(run: Run, charts: list[Chart]) -> Html:
    if not charts:
        return section("Over time", note("No step was recorded."), id="curves")
    return section(
        "Over time",
        element("div", join(figure(chart) for chart in charts), class_="grid"),
        note(_how_to_read(run)),
        id="curves",
    )


def _how_to_read(run: Run) -> str:
    sentences = ["Drag across a chart to look closer, double-click to see all of it."]
    if run.metrics.downsampled:
        most = max(bin.steps for bin in run.metrics.fine)
        sentences.append(f"Each point stands for up to {most:,} recorded steps: their mean, for memory their highest.")
    if any(event.step is not None for event in run.metrics.events):
        sentences.append("Dotted upright lines are events, listed below.")
    return " ".join(sentences)
