"""The curves of a run: loss, accuracy, memory, throughput, power and learning rate over its steps and epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from edgetune.report.charts import Chart, Line, Mark, Values, known, rounded
from edgetune.report.metrics import Bin, Tally, finite
from edgetune.report.run import Run

_MOST_EVENT_MARKS = 40


def curves(run: Run) -> list[Chart]:
    """The charts over time that this run has data for."""
    candidates = (
        _loss(run),
        _accuracy(run),
        _memory(run),
        _plain(run, "images_per_s", "Throughput", "Images a second, training steps only.", "images/s", "c4"),
        _plain(run, "power_w", "Power", _power_caption(run), "W", "c5"),
        _plain(run, "lr", "Learning rate", "With warm-up and schedule.", "", "c6"),
    )
    return [chart for chart in candidates if chart is not None]


def _column(bins: Iterable[Bin], name: str, pick: Callable[[Tally], float | None], factor: float = 1.0) -> Values:
    picked = (pick(bin.of(name)) for bin in bins)
    return [None if value is None else rounded(value * factor) for value in picked]


def _mean(tally: Tally) -> float | None:
    return tally.mean


def _least(tally: Tally) -> float | None:
    return tally.least


def _most(tally: Tally) -> float | None:
    return tally.most


def _event_steps(run: Run) -> list[int]:
    return sorted({event.step for event in run.metrics.events if event.step is not None})[:_MOST_EVENT_MARKS]


def _loss(run: Run) -> Chart | None:
    fine = run.metrics.fine
    validation: dict[int, float | None] = {}
    for row in run.metrics.epochs:
        step, loss = finite(row.get("step")), finite(row.get("val_loss"))
        if step is not None and loss is not None:
            validation[int(step)] = rounded(loss)
    x = sorted({bin.last_step for bin in fine} | set(validation))
    train = _by_step(fine, _mean)
    if not known(list(train.values())) and not validation:
        return None
    lines = [Line(label="training", values=[train.get(step) for step in x], color="c1")]
    if run.metrics.downsampled:
        high, low = _by_step(fine, _most), _by_step(fine, _least)
        lines.append(Line(label="highest", values=[high.get(step) for step in x], color="c1", style="high"))
        lines.append(Line(label="lowest", values=[low.get(step) for step in x], color="c1", style="low"))
    if validation:
        lines.append(Line(label="validation", values=[validation.get(step) for step in x], color="c2", style="points"))
    caption = "Training loss of each step" + (", validation loss after each epoch." if validation else ".")
    if run.metrics.downsampled:
        caption += " The band runs from the lowest to the highest loss of the steps behind a point."
    return Chart(
        id="loss",
        title="Loss",
        caption=caption,
        x_label="step",
        unit="",
        x=x,
        lines=lines,
        event_steps=_event_steps(run),
    )


def _by_step(bins: list[Bin], pick: Callable[[Tally], float | None]) -> dict[int, float | None]:
    return {bin.last_step: rounded(pick(bin.of("loss"))) for bin in bins}


def _accuracy(run: Run) -> Chart | None:
    rows = [row for row in run.metrics.epochs if finite(row.get("val_accuracy")) is not None]
    if run.metrics.accuracies:
        return _accuracy_by_step(run, rows)
    if not rows:
        return None
    values = [rounded(100 * float(row["val_accuracy"])) for row in rows]
    return Chart(
        id="accuracy",
        title="Validation accuracy",
        caption=f"Share of {run.plan.data.val_images:,} validation images right, after each epoch.",
        x_label="epoch",
        unit="%",
        x=[int(row["epoch"]) + 1 for row in rows],
        lines=[Line(label="accuracy", values=values, color="c3")],
        most=100.0,
    )


def _accuracy_by_step(run: Run, epochs: list[dict[str, Any]]) -> Chart:
    """Where accuracies were recorded between the epochs' ends as well (`--evaluate-steps`)."""
    ends = {int(row["step"]): float(row["val_accuracy"]) for row in epochs if finite(row.get("step")) is not None}
    known = dict(sorted((run.metrics.accuracies | ends).items()))
    return Chart(
        id="accuracy",
        title="Validation accuracy",
        caption=f"Share of {run.plan.data.val_images:,} validation images right, recorded every few steps.",
        x_label="step",
        unit="%",
        x=list(known),
        lines=[Line(label="accuracy", values=[rounded(100 * value) for value in known.values()], color="c3")],
        most=100.0,
    )


def _memory(run: Run) -> Chart | None:
    fine = run.metrics.fine
    most = max(known(_column(fine, "memory_bytes", _most)), default=None)
    if most is None:
        return None
    unit, factor = ("GiB", 2.0**-30) if most >= 2**30 else ("MiB", 2.0**-20)
    levels = [
        ("predicted peak", float(run.plan.predicted.peak_memory_bytes), "c2"),
        ("cap", None if run.plan.caps.memory_bytes is None else float(run.plan.caps.memory_bytes), "c7"),
    ]
    # A cap far above the curve would press it flat; it is then named in the caption instead.
    marks = [
        Mark(label=name, value=v * factor, color=color)
        for name, v, color in levels
        if v is not None and v <= 2.5 * most
    ]
    beyond = [f"{name} {v * factor:,.0f} {unit}" for name, v, _ in levels if v is not None and v > 2.5 * most]
    caption = "Resident memory of the whole process tree, runtime included."
    if beyond:
        caption += f" Off the chart: {', '.join(beyond)}."
    return Chart(
        id="memory",
        title="Memory",
        caption=caption,
        x_label="step",
        unit=unit,
        x=[bin.last_step for bin in fine],
        lines=[Line(label="memory", values=_column(fine, "memory_bytes", _most, factor), color="c1")],
        marks=marks,
        event_steps=_event_steps(run),
        from_zero=True,
    )


def _plain(run: Run, name: str, title: str, caption: str, unit: str, color: str) -> Chart | None:
    fine = run.metrics.fine
    values = _column(fine, name, _mean)
    if not known(values):
        return None
    return Chart(
        id=name,
        title=title,
        caption=caption,
        x_label="step",
        unit=unit,
        x=[bin.last_step for bin in fine],
        lines=[Line(label=title.lower(), values=values, color=color)],
        event_steps=_event_steps(run),
        from_zero=True,
    )


def _power_caption(run: Run) -> str:
    energy, power = (run.result.energy if run.result else None), (run.profile.power if run.profile else None)
    if energy is not None and energy.source:
        how = "measured" if energy.measured else "modelled, not measured"
        return f"{energy.source}, scope {energy.scope or 'unknown'}, {how}."
    if power is not None and power.source:
        how = "measured" if power.measured else "modelled, not measured"
        return f"{power.source}, scope {power.scope or 'unknown'}, {how}."
    return "As recorded while training; where it came from is not recorded."
