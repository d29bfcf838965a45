"""The trade-off of a plan: what a little more or less memory, time and energy would buy. On a run's page, and alone."""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.report.charts import Chart, Line, Mark, figure
from edgetune.report.markup import Child, Html, element, join, note, section, table
from edgetune.schema import Alternative, Plan
from edgetune.units import format_duration, format_energy, format_size

_MIB = 1 << 20


def tradeoff(plan: Plan, charts: list[Chart]) -> Html | None:
    """The alternatives as charts and as a table; None for a plan that has none."""
    if len(plan.alternatives) < 2:
        return None
    names = ["", "trained blocks", "tokens", "kept", "in parts of", "peak", "time", "energy", "expected learning"]
    return section(
        "Trade-off",
        element("div", join(figure(chart) for chart in charts), class_="grid"),
        table(names, [_row(found) for found in plan.alternatives], numbers_from=4),
        note(
            "Every row is predicted, and none beats another in memory, time and learning at once, but that the chosen"
            " one, which the method and the caps decide, is shown wherever it stands. Expected learning is modelled"
            " (docs/planner.md) and relative to it."
        ),
        id="tradeoff",
    )


def against_caps(plan: Plan) -> Html:
    """What is predicted, at most, beside what is allowed; and what to beware of."""
    predicted, caps, factor = plan.predicted, plan.caps, plan.predicted.time_factor

    def most(value: float | None) -> float | None:
        return None if value is None or factor is None else value * factor

    rows: list[list[Child]] = [
        [
            "peak memory",
            format_size(predicted.peak_memory_bytes),
            format_size(predicted.peak_memory_most_bytes),
            format_size(caps.memory_bytes),
        ],
        [
            "time",
            format_duration(predicted.total_s),
            format_duration(most(predicted.total_s)),
            format_duration(caps.time_s),
        ],
        [
            "energy",
            format_energy(predicted.total_energy_j),
            format_energy(most(predicted.total_energy_j)),
            format_energy(caps.energy_j),
        ],
    ]
    return section(
        "Predicted, and allowed",
        table(["", "predicted", "at most", "cap"], rows),
        element("ul", *(element("li", sentence) for sentence in plan.warnings)) if plan.warnings else None,
        id="caps",
    )


def step_table(plan: Plan) -> Html | None:
    """What a step takes, row by row; None where nothing was timed."""
    parts = plan.predicted.step_parts
    if not parts:
        return None

    def seconds(value: float) -> str:
        return f"{1000 * value:.3g} ms" if value else "—"

    return section(
        "What a step takes",
        table(
            ["", "forward", "passing the gradient on", "weight gradients", "kept", "energy"],
            [
                [
                    part.name,
                    seconds(part.forward_s),
                    seconds(part.pass_gradient_s),
                    seconds(part.weight_gradient_s),
                    format_size(part.saved_bytes) if part.saved_bytes else "—",
                    format_energy(part.energy_j) if part.energy_j is not None else "—",
                ]
                for part in parts
            ],
        ),
        note(
            "Predicted from the profile's probes, on average over the blocks that are drawn; kept: until the way back."
        ),
        id="step",
    )


def tradeoff_charts(plan: Plan) -> list[Chart]:
    """Expected learning, time and energy over the predicted peak."""
    if len(plan.alternatives) < 2:
        return []
    cap = plan.caps.memory_bytes
    allowed = "" if cap is None else f", of which {format_size(cap)} are allowed"
    about = "Each point is a plan that no other one beats; the chosen one and those beyond a cap are marked."
    learning = [found.learning for found in plan.alternatives]
    charts = [_chart(plan, "tradeoff-learning", "Expected learning", f". {about}", "", learning)]
    seconds = [found.total_s for found in plan.alternatives if found.total_s is not None]
    joules = [found.total_energy_j for found in plan.alternatives if found.total_energy_j is not None]
    for name, title, unit, values, most in (
        ("tradeoff-time", "Time", "s", seconds, plan.caps.time_s),
        ("tradeoff-energy", "Energy", "J", joules, plan.caps.energy_j),
    ):
        if len(values) == len(plan.alternatives):
            marks = [] if most is None else [Mark(label="cap", value=most, color="c7")]
            charts.append(_chart(plan, name, title, f"{allowed}.", unit, values, marks))
    return charts


def _chart(
    plan: Plan, name: str, title: str, caption: str, unit: str, values: list[float], marks: Sequence[Mark] = ()
) -> Chart:
    return Chart(
        id=name,
        title=title,
        caption=f"By predicted peak memory{caption}",
        x_label="MiB",
        unit=unit,
        x=[round(found.peak_memory_bytes / _MIB) for found in plan.alternatives],
        lines=_points(values, plan),
        marks=list(marks),
        from_zero=True,
    )


def _points(values: list[float], plan: Plan) -> list[Line]:
    pairs = list(zip(values, plan.alternatives, strict=True))
    within: list[float | None] = [value if found.within_caps and not found.chosen else None for value, found in pairs]
    beyond: list[float | None] = [value if not found.within_caps else None for value, found in pairs]
    chosen: list[float | None] = [value if found.chosen else None for value, found in pairs]
    lines = [
        Line(label="alternatives", values=within, color="c1", style="points"),
        Line(label="beyond a cap", values=beyond, color="c7", style="points"),
        Line(label="chosen", values=chosen, color="c2", style="points"),
    ]
    return [line for line in lines if any(value is not None for value in line.values)]


def _row(found: Alternative) -> list[Child]:
    part = f"{found.recomputed_blocks} blocks " if found.recomputed_blocks < found.trained_blocks else ""
    kept = found.saved_precision + (f", {part}computed again" if found.recomputed_blocks else "")
    return [
        "chosen" if found.chosen else "" if found.within_caps else "beyond a cap",
        str(found.trained_blocks) + (f", {found.k} at a time" if found.k < found.trained_blocks else ""),
        f"{found.token_share:.0%}",
        kept if found.trained_blocks else "",
        str(found.micro_batch_size),
        format_size(found.peak_memory_bytes),
        format_duration(found.total_s),
        format_energy(found.total_energy_j),
        f"{found.learning:.2f}",
    ]
