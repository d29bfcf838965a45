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
            "Every row is predicted, and no row beats another in memory, time and learning at once. Expected learning"
            " is modelled (docs/planner.md) and relative to the chosen plan."
        ),
        id="tradeoff",
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
    """Expected learning and time over the predicted peak."""
    if len(plan.alternatives) < 2:
        return []
    cap = plan.caps.memory_bytes
    allowed = "" if cap is None else f", of which {format_size(cap)} are allowed"
    about = "Each point is a plan that no other one beats; the chosen one is marked."
    learning = [found.learning for found in plan.alternatives]
    charts = [_chart(plan, "tradeoff-learning", "Expected learning", f". {about}", "", learning)]
    seconds = [found.total_s for found in plan.alternatives if found.total_s is not None]
    if len(seconds) == len(plan.alternatives):
        marks = [] if plan.caps.time_s is None else [Mark(label="cap", value=plan.caps.time_s, color="c7")]
        charts.append(_chart(plan, "tradeoff-time", "Time", f"{allowed}.", "s", seconds, marks))
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
    chosen: list[float | None] = [
        value if found.chosen else None for value, found in zip(values, plan.alternatives, strict=True)
    ]
    return [
        Line(label="alternatives", values=list(values), color="c1", style="points"),
        Line(label="chosen", values=chosen, color="c2", style="points"),
    ]


def _row(found: Alternative) -> list[Child]:
    kept = found.saved_precision + (", computed again" if found.saved_activations == "recompute" else "")
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
