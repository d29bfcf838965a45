"""What it was said to cost and what it cost: predicted against measured, and where memory, time and joules went."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgetune.report.markup import Html, count, element, join, note, percent, section, table
from edgetune.report.metrics import finite
from edgetune.report.run import Run
from edgetune.report.summary import energy_origin, no_total
from edgetune.units import format_duration, format_energy, format_size

_BILL = {
    "runtime": ("Bare process", "interpreter, libraries, thread pools"),
    "weights": ("Weights", "all parameters, trained or not"),
    "gradients": ("Gradients", "of the weights that train"),
    "optimizer": ("Optimizer state", "moments of the weights that train"),
    "activations": ("Saved activations", "kept from forward to backward"),
    "workspace": ("Workspace", "temporary buffers of one operation"),
    "data": ("Data", "batches, decoding, workers"),
}
_OPEN_ROWS = 20  # longer tables start closed
_MOST_ROWS = 300


def stacked(parts: Sequence[tuple[str, float]], whole: float, label: str, palette: str = "bill") -> Html:
    """Parts of a whole as one bar; what is missing up to `whole` stays empty. Colours follow the order of the parts."""
    pieces = join(
        element("i", class_=f"p{place % 8}", style=f"width:{100 * value / whole:.2f}%", title=name)
        for place, (name, value) in enumerate(parts)
        if whole > 0 and value > 0
    )
    return element("div", pieces, class_=f"stacked {palette}", role="img", aria_label=label)


def _key(place: int, name: str) -> Html:
    return element("span", element("i", class_=f"key p{place % 8}"), name)


def predicted_against_measured(run: Run) -> Html:
    """One row per prediction the plan made."""
    plan, result, predicted = run.plan, run.result, run.plan.predicted
    whole = run.whole_epochs
    epochs_s, epochs_j = run.epochs_s[:whole], [joules for joules in run.epochs_j[:whole] if joules is not None]
    epoch_s = sum(epochs_s) / len(epochs_s) if epochs_s else None
    epoch_j = sum(epochs_j) / len(epochs_j) if epochs_j else None
    steps = whole * plan.steps_per_epoch if run.steps is None else run.steps
    step_s = sum(run.epochs_s) / steps if steps else None
    memory = result.memory if result else None
    peak, baseline = (memory.measured_peak_bytes, memory.baseline_bytes) if memory else (None, None)
    above = peak - baseline if peak is not None and baseline is not None else None
    flops = result.work.train_flops / result.work.images if result and result.work.images else None
    energy = " (modelled)" if energy_origin(run) == "modelled" else ""
    total_s, total_j = (result.time.total_s, result.energy.total_j) if result else (None, None)
    # a run that ended before its epochs did is no whole one: it says nothing of the prediction
    early = f", ended early by {result.stopped_by}" if result and result.stopped_by != "epochs" else ""
    whole_s, whole_j = (None, None) if early else (predicted.total_s, predicted.total_energy_j)
    rows: list[tuple[str, float | None, float | None, str, str]] = [
        ("Peak memory", predicted.peak_memory_bytes, peak, format_size(predicted.peak_memory_bytes), format_size(peak)),
        (
            "of it, bare process",
            predicted.memory.runtime,
            baseline,
            format_size(predicted.memory.runtime),
            format_size(baseline),
        ),
        (
            "of it, above that",
            predicted.peak_memory_bytes - predicted.memory.runtime,
            above,
            format_size(predicted.peak_memory_bytes - predicted.memory.runtime),
            format_size(above),
        ),
        ("One step", predicted.step_s, step_s, format_duration(predicted.step_s), format_duration(step_s)),
        ("One epoch", predicted.epoch_s, epoch_s, format_duration(predicted.epoch_s), format_duration(epoch_s)),
        ("Whole run", whole_s, total_s, format_duration(predicted.total_s), format_duration(total_s) + early),
        (
            "Energy of an epoch",
            predicted.epoch_energy_j,
            epoch_j,
            format_energy(predicted.epoch_energy_j),
            format_energy(epoch_j) + energy,
        ),
        (
            "Energy of the run",
            whole_j,
            total_j,
            format_energy(predicted.total_energy_j),
            format_energy(total_j) + energy + early,
        ),
        (
            "FLOPs for an image",
            predicted.train_flops_per_image,
            flops,
            _gigaflops(predicted.train_flops_per_image),
            _gigaflops(flops),
        ),
    ]
    return section(
        "Predicted against measured",
        table(
            ["", "predicted", "measured", "measured ÷ predicted"],
            [[name, said, was, _ratio(a, b)] for name, a, b, said, was in rows],
        ),
        note(
            f"Predicted before the first step by {predicted.model}, not measured. The measured step is the mean of all,"
            " data loading included; epochs that a cap cut short are left out of theirs. FLOPs are reckoned, not"
            " measured: of the plan on the left, of the steps that ran on the right."
        ),
        id="predicted",
    )


def _ratio(predicted: float | None, measured: float | None) -> str:
    return f"{measured / predicted:.2f}" if predicted and measured is not None else "—"


def _gigaflops(flops: float | None) -> str:
    return "—" if flops is None else f"{flops / 1e9:.3g} G"


def where_memory_went(run: Run) -> Html:
    """The memory bill of the plan as a bar, beside the measured peak and the cap."""
    bill, cap = run.plan.predicted.memory, run.plan.caps.memory_bytes
    measured = run.result.memory.measured_peak_bytes if run.result else None
    parts = [(title, float(getattr(bill, name))) for name, (title, _) in _BILL.items()]
    # A cap of many times the bill would leave nothing to see of it.
    shown_cap = cap if cap is not None and cap <= 3 * bill.total else None
    whole = float(max(bill.total, measured or 0, shown_cap or 0))
    bars = [_bar("Predicted", format_size(bill.total), stacked(parts, whole, f"Predicted {format_size(bill.total)}"))]
    if measured is not None:
        bars.append(
            _bar(
                "Measured",
                format_size(measured),
                stacked([("Measured peak", float(measured))], whole, "Measured peak", "plain"),
            )
        )
    if run.result is not None and measured is not None and run.result.memory.baseline_bytes is not None:
        bars += _above_the_bare_process(parts[1:], measured - run.result.memory.baseline_bytes)
    if cap is not None and shown_cap is not None:
        bars.append(
            _bar(
                "Cap",
                format_size(cap),
                element("div", element("i", style=f"width:{100 * cap / whole:.2f}%"), class_="stacked cap"),
            )
        )
    rows = [
        [
            join([_key(place, title), element("span", about, class_="about aside")]),
            format_size(getattr(bill, name)),
            _part(getattr(bill, name), bill.total),
        ]
        for place, (name, (title, about)) in enumerate(_BILL.items())
    ]
    source = run.plan.caps.memory_source
    origin = (
        join([" The cap comes from ", element("span", source, class_="nobreak" if len(source) < 20 else None), "."])
        if source
        else None
    )
    off = (
        f" The cap, {format_size(cap)}, is far off to the right of the bars."
        if cap is not None and shown_cap is None
        else ""
    )
    return section(
        "Where the memory goes",
        element("div", *bars, class_="bars"),
        table(["part of the bill", "predicted", "share"], rows),
        note(
            "The parts are the plan's, for its worst step; only their sum can be measured. The lower pair of bars"
            " leaves the bare process out and has a scale of its own.",
            origin,
            off,
        ),
        id="memory-bill",
    )


def _above_the_bare_process(parts: Sequence[tuple[str, float]], measured: int) -> list[Html]:
    """The same without the bare process, beside which the rest may be too thin to see."""
    predicted = sum(value for _, value in parts)
    whole = max(predicted, float(measured))
    blank = ("", 0.0)  # keeps every part the colour it has in the whole bill
    return [
        _bar("of it, above", format_size(round(predicted)), stacked([blank, *parts], whole, "Predicted above it")),
        _bar(
            "measured",
            format_size(measured),
            stacked([("Measured above the bare process", float(measured))], whole, "Measured above it", "plain"),
        ),
    ]


def _bar(name: str, figure: str, bar: Html) -> Html:
    return element("div", element("span", name), bar, element("span", figure, class_="n"), class_="bar")


def _part(value: float, total: float) -> str:
    if not total:
        return "—"
    return "< 1 %" if 0 < value < 0.005 * total else percent(value / total, 0)


def where_time_went(run: Run) -> Html:
    """Seconds and joules by what they were spent on, and by epoch."""
    result = run.result
    children: list[Html] = []
    if result is not None:
        training, rest = (
            sum(result.time.epochs_s),
            result.time.total_s - sum(result.time.epochs_s) - result.time.eval_s - result.time.save_s,
        )
        parts = [
            ("Training", training),
            ("Evaluation", result.time.eval_s),
            ("Saving", result.time.save_s),
            ("Start-up and the rest", max(rest, 0.0)),
        ]
        children += _spent("Time", parts, format_duration)
        children += _joules(run)
    children.append(_epoch_table(run))
    return section("Where the time and the joules went", *children, id="time")


def _spent(name: str, parts: list[tuple[str, float]], say: Callable[[float], str]) -> list[Html]:
    total = sum(value for _, value in parts)
    keys = [
        element(
            "li",
            _key(place, title),
            " ",
            element("b", say(value)),
            " ",
            element("span", _part(value, total), class_="about"),
        )
        for place, (title, value) in enumerate(parts)
    ]
    return [
        element("div", _bar(name, say(total), stacked(parts, total, f"{name}: {say(total)}", "spent")), class_="bars"),
        element("ul", *keys, class_="keys spent"),
    ]


def _joules(run: Run) -> list[Html]:
    assert run.result is not None
    energy = run.result.energy
    if energy.total_j is None:
        return [note(f"Energy is unknown: {no_total(run)}.")]
    training = sum(joules for joules in energy.epochs_j if joules is not None)
    found = _spent(
        "Energy", [("Training", training), ("Everything else", max(energy.total_j - training, 0.0))], format_energy
    )
    how = "Measured" if energy.measured else "Modelled, not measured"
    idle = ""
    if energy.net_j is not None:
        idle = (
            f" An idle machine would have used {format_energy(energy.total_j - energy.net_j)} of it in the same time."
        )
    found.append(note(f"{how}: {energy.source or 'unknown source'}, scope {energy.scope or 'unknown'}.{idle}"))
    return found


def _epoch_table(run: Run) -> Html:
    rows = run.metrics.epochs
    if not rows:
        return note("No epoch was finished.")
    shown = (
        rows
        if len(rows) <= _MOST_ROWS
        else [rows[round(i * (len(rows) - 1) / (_MOST_ROWS - 1))] for i in range(_MOST_ROWS)]
    )
    joules = "energy (modelled)" if energy_origin(run) == "modelled" else "energy"
    written = table(
        ["epoch", "training loss", "validation loss", "accuracy", "time", joules, "images/s", "memory"],
        [
            [
                count(int(row["epoch"]) + 1),
                _loss(row.get("train_loss")),
                _loss(row.get("val_loss")),
                percent(finite(row.get("val_accuracy"))),
                format_duration(finite(row.get("epoch_s"))),
                format_energy(finite(row.get("energy_j"))),
                _loss(row.get("images_per_s")),
                format_size(finite(row.get("memory_bytes"))),
            ]
            for row in shown
        ],
    )
    if len(rows) <= _OPEN_ROWS:
        return join([element("h3", "Epoch by epoch"), written])
    title = f"All {len(rows):,} epochs" if shown is rows else f"{len(shown):,} of {len(rows):,} epochs, evenly spaced"
    return element("details", element("summary", title), written)


def _loss(value: object) -> str:
    number = finite(value)
    return "—" if number is None else f"{number:.4g}"
