"""The top of the page: what was trained, the one-paragraph answer, the four headline figures, what needs attention."""

from __future__ import annotations

from pathlib import PurePath

from edgetune.report.markup import Html, badge, element, join, percent
from edgetune.report.run import Run
from edgetune.schema import Plan
from edgetune.units import format_duration, format_energy, format_size

_ENDINGS = {
    "epochs": "All planned steps ran.",
    "patience": "Stopped early: the validation accuracy no longer improved.",
    "memory": "The memory cap ended the run before its planned steps; the checkpoint is usable.",
    "energy": "The energy cap ended the run before its planned steps; the checkpoint is usable.",
    "time": "The time cap ended the run before its planned steps; the checkpoint is usable.",
    "user": "The run was interrupted; it can be resumed.",
    "nan": "The loss stopped being a number, so the run was ended; the last good checkpoint was kept.",
}
_UNFINISHED = "There is no result.json: the run is still going on, or it was killed. Figures are those recorded so far."


def data_name(plan: Plan) -> str:
    """The last part of the data folder's path."""
    return PurePath(plan.data.path).name or plan.data.path


def header(run: Run) -> Html:
    """Title, facts under it and the summary paragraph."""
    plan = run.plan
    board = run.profile.board.name if run.profile else None
    when = (run.result.created if run.result else plan.created)[:16].replace("T", " ")
    facts = [
        f"method {plan.method}",
        f"{plan.image_size} px",
        f"engine {plan.engine} on {plan.device}",
        board,
        f"{when} UTC",
    ]
    return element(
        "header",
        element("p", "edgetune · fine-tuning report", class_="kicker"),
        element("h1", plan.model, element("span", " on ", class_="on"), data_name(plan)),
        element("p", " · ".join(fact for fact in facts if fact), class_="facts"),
        element("p", *_abstract(run), class_="abstract"),
        join(element("p", sentence, class_="alert") for sentence in _alerts(run)),
    )


def _planned(plan: Plan) -> str:
    if plan.total_steps < plan.steps_per_epoch:
        return f"{plan.total_steps:,} of an epoch's {plan.steps_per_epoch:,} steps"
    return f"{plan.epochs} epoch{'s' if plan.epochs != 1 else ''}"


def _abstract(run: Run) -> list[str]:
    plan, result, best = run.plan, run.result, run.best
    sentences = [
        f"{plan.data.train_images:,} training images of {len(plan.data.classes):,} classes,"
        f" {_planned(plan)} planned at batch {plan.batch_size}."
    ]
    if best is not None:
        sentences.append(
            f"The best checkpoint, after epoch {best[0]}, is right on {percent(best[1])} of {plan.data.val_images:,}"
            f" validation images ({plan.data.split})."
        )
    else:
        sentences.append("No validation accuracy was recorded.")
    if result is not None:
        peak, cap = result.memory.measured_peak_bytes, result.memory.cap_bytes
        if peak is not None:
            against = f" of a cap of {format_size(cap)}" if cap is not None else ""
            sentences.append(f"Memory peaked at {format_size(peak)}{against}.")
        sentences.append(_ENDINGS.get(result.stopped_by, f"Ended by: {result.stopped_by}."))
    return [" ".join(sentences)]


def _alerts(run: Run) -> list[str]:
    result, alerts = run.result, list(run.notes)
    if result is None:
        alerts.insert(0, _UNFINISHED)
        return alerts
    peak, cap = result.memory.measured_peak_bytes, result.memory.cap_bytes
    if peak is not None and cap is not None and peak > cap:
        alerts.append(f"The measured peak is above the memory cap, by {format_size(peak - cap)}.")
    if (
        result.energy.total_j is not None
        and result.energy.cap_j is not None
        and result.energy.total_j > result.energy.cap_j
    ):
        alerts.append(
            f"The energy used is above the cap, by {format_energy(result.energy.total_j - result.energy.cap_j)}."
        )
    if result.throttled:
        alerts.append("The machine throttled while it trained: times and joules are those of a slowed machine.")
    return alerts


def headline(run: Run) -> Html:
    """Accuracy, peak memory, time and energy, each with its cap and with how it came about."""
    return element("div", _accuracy(run), _memory(run), _time(run), _energy(run), class_="headline")


def _tile(name: str, figure: str, mark: Html | None, *lines: str | None, used: float | None = None) -> Html:
    meter = None
    if used is not None:
        state = "over" if used > 1 else None
        meter = element(
            "div", element("i", style=f"width:{100 * min(used, 1):.1f}%"), class_=f"meter {state or ''}".strip()
        )
    return element(
        "div",
        element("h3", name, " ", mark),
        element("p", figure, class_="figure"),
        meter,
        *(element("p", line, class_="line") for line in lines if line),
        class_="tile",
    )


def _share(value: float | None, cap: float | None) -> float | None:
    return value / cap if value is not None and cap else None


def _of_cap(used: float | None, cap: str | None) -> str:
    if cap is None:
        return "no cap"
    return f"cap {cap}" if used is None else f"{100 * used:.0f} % of the cap, {cap}"


def _accuracy(run: Run) -> Html:
    best, result = run.best, run.result
    if best is None:
        return _tile("Accuracy", "—", badge("unknown"), "no epoch was evaluated")
    last = f"last epoch {percent(result.accuracy.last)}" if result and result.accuracy.last is not None else None
    return _tile(
        "Accuracy",
        percent(best[1]),
        None if result else badge("so far"),
        f"top-1, best of validation, epoch {best[0]}",
        last,
    )


def _memory(run: Run) -> Html:
    plan, result = run.plan, run.result
    cap = result.memory.cap_bytes if result else plan.caps.memory_bytes
    cap_text = format_size(cap) if cap is not None else None
    if result is None:
        seen = [bin.of("memory_bytes").most for bin in run.metrics.fine]
        most = max((value for value in seen if value is not None), default=None)
        used = _share(most, cap)
        mark = badge("so far") if most is not None else badge("unknown")
        return _tile(
            "Peak memory",
            format_size(most),
            mark,
            _of_cap(used, cap_text),
            "highest recorded at a step" if used else None,
            used=used,
        )
    peak, baseline = result.memory.measured_peak_bytes, result.memory.baseline_bytes
    used = _share(peak, cap)
    above = (
        f"{format_size(peak - baseline)} above the bare process" if peak is not None and baseline is not None else None
    )
    device = result.memory.device_peak_bytes
    return _tile(
        "Peak memory",
        format_size(peak),
        badge("measured" if peak is not None else "unknown"),
        _of_cap(used, cap_text),
        above,
        f"on the accelerator {format_size(device)}" if device is not None else None,
        used=used,
    )


def _time(run: Run) -> Html:
    cap, epochs = run.plan.caps.time_s, run.epochs_s
    total = run.result.time.total_s if run.result else (sum(epochs) if epochs else None)
    used = _share(total, cap)
    mean = f"{format_duration(sum(epochs) / len(epochs))} an epoch" if epochs else None
    mark = badge("measured") if run.result else badge("so far" if epochs else "unknown")
    return _tile(
        "Time",
        format_duration(total),
        mark,
        _of_cap(used, format_duration(cap) if cap is not None else None),
        mean,
        used=used,
    )


def energy_origin(run: Run) -> str:
    """`measured`, `modelled` or `unknown`: of whatever joules there are, the run's total or an epoch's."""
    if run.result is None:
        return "unknown" if run.plan.power_w is None else "modelled"
    if run.result.energy.source is None:
        return "unknown"
    return "measured" if run.result.energy.measured else "modelled"


def no_total(run: Run) -> str:
    """Why the joules of a run are unknown."""
    source = run.result.energy.source if run.result else None
    if source is None:
        return "no power sensor, and no --power given"
    return f"{source} left holes, or did not answer in every sitting"


def _energy(run: Run) -> Html:
    result, cap = run.result, run.plan.caps.energy_j
    cap_text = format_energy(cap) if cap is not None else None
    known = [joules for joules in run.epochs_j if joules is not None]
    if result is None:
        total = sum(known) if known else None
        used = _share(total, cap)
        mark = badge("unknown" if not known else "modelled" if energy_origin(run) == "modelled" else "so far")
        return _tile(
            "Energy",
            format_energy(total),
            mark,
            _of_cap(used, cap_text),
            "finished epochs only" if known else None,
            used=used,
        )
    energy = result.energy
    used = _share(energy.total_j, cap)
    if energy.total_j is None:
        return _tile("Energy", "—", badge("unknown"), _of_cap(None, cap_text), no_total(run))
    net = f"{format_energy(energy.net_j)} above idle" if energy.net_j is not None else "net of idle unknown"
    source = f"{energy.source or 'source unknown'}, {energy.scope or 'scope unknown'}"
    return _tile(
        "Energy",
        format_energy(energy.total_j),
        badge(energy_origin(run)),
        _of_cap(used, cap_text),
        net,
        source,
        used=used,
    )
