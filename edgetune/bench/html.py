"""`bench.html`: a benchmark as one file that opens anywhere, offline: charts, tables, commands, machine."""

from __future__ import annotations

from collections.abc import Callable

from edgetune import __version__
from edgetune.bench.charts import COLOR_OF, charts_of, family, numbered
from edgetune.bench.page import (
    MODELLED,
    REACH_NOTE,
    augmentation,
    joules_text,
    machine_lines,
    reach_tables,
    title,
    told_accuracy,
)
from edgetune.bench.records import Bench, MethodRow, Spread
from edgetune.bench.summary import no_joules, rows_sources
from edgetune.bench.verdict import HEADS, losses, verdict_cells
from edgetune.report.charts import AnyChart, Chart, figure
from edgetune.report.markup import Child, Html, badge, element, join, note, percent, section, table
from edgetune.report.page import page

_MIB = 1 << 20


def bench_page(bench: Bench) -> str:
    """The whole page."""
    charts = charts_of(bench)
    content = [
        _header(bench),
        _charts(bench, charts),
        _figures(bench),
        _verdict(bench),
        _reach(bench),
        _conditions(bench),
        _commands(bench),
        _machine(bench),
    ]
    return page(
        title=f"{title(bench)} · edgetune",
        content=join(content),
        charts=charts,
        footer=f"Written by edgetune {__version__}. Charts: uPlot, MIT licence.",
    )


def _header(bench: Bench) -> Html:
    settings = bench.settings
    facts = [
        settings.data,
        f"{settings.train_images:,} training and {settings.val_images:,} validation images",
        f"{settings.classes} classes",
        f"{bench.repetitions} repetition{'s' if bench.repetitions > 1 else ''}",
        f"{bench.created[:16].replace('T', ' ')} UTC",
    ]
    return element(
        "header",
        element("p", "edgetune · benchmark", class_="kicker"),
        element("h1", title(bench)),
        element("p", " · ".join(facts), class_="facts"),
        element("p", " ".join(_abstract(bench)), class_="abstract"),
        join(element("p", warning, class_="alert") for warning in bench.warnings),
    )


def _abstract(bench: Bench) -> list[str]:
    """What edgetune wins and what it loses, and who is best at what."""
    rows = {row.entry.name: row for row in bench.methods}
    sentences = []
    ours, full = rows.get("edgetune"), rows.get(bench.full_accuracy_of or "")
    if ours is not None and ours.to_eager is not None:
        parts = [
            f"{ratio:.2f} of the {what}"
            for what, ratio in (("memory", ours.to_eager.above_baseline), ("time", ours.to_eager.epoch))
            if ratio is not None
        ]
        if parts:
            sentences.append(f"edgetune takes {' and '.join(parts)} of full fine-tuning in eager PyTorch.")
    mine, fulls = (told_accuracy(bench, row) if row is not None else None for row in (ours, full))
    if mine is not None and fulls is not None and ours is not full:
        points = 100 * (mine.median - fulls.median)
        sentences.append(f"Its accuracy is {abs(points):.1f} points {'above' if points >= 0 else 'below'} full's.")
    sentences += [f"{what}: {best}." for what, best in _best(bench)]
    return sentences


def _best(bench: Bench) -> list[tuple[str, str]]:
    rows = bench.methods

    def first(figure: Callable[[MethodRow], Spread | None], *, most: bool = False) -> str | None:
        known = [(spread.median, row.entry.name) for row in rows if (spread := figure(row)) is not None]
        if len({value for value, _ in known}) < 2:
            return None
        best = (max if most else min)(value for value, _ in known)
        return ", ".join(name for value, name in known if value == best)

    modelled = " (modelled)" if any(row.energy_measured is False for row in rows) else ""
    named = [
        ("Least memory", first(lambda row: row.above_baseline_bytes)),
        ("Fastest epochs", first(lambda row: row.epoch_s)),
        ("Fewest joules" + modelled, first(lambda row: row.epoch_j)),
        ("Most accurate", first(lambda row: told_accuracy(bench, row), most=True)),
    ]
    return [(what, name) for what, name in named if name is not None]


def _charts(bench: Bench, charts: list[AnyChart]) -> Html | None:
    if not charts:
        return section("Charts", note("No run has ended well yet."), id="charts-none")
    families = [name for name in COLOR_OF if any(family(row) == name for row in bench.methods)]
    colours = [
        element("li", element("i", class_="key", style=f"background:var(--{COLOR_OF[name]})"), name)
        for name in families
    ]
    numbers = [element("li", element("b", str(number)), " ", name) for name, number in numbered(bench).items()]
    return section(
        "Who pays what for what",
        element("ul", *colours, class_="keys"),
        element("ul", *numbers, class_="keys"),
        element("div", join(figure(chart) for chart in charts), class_="grid"),
        note(
            "Medians; lines through a marker or at a bar's end run from the lowest to the highest of the repetitions."
            + (" Drag across the curves to look closer." if any(isinstance(chart, Chart) for chart in charts) else "")
        ),
        id="charts-all",
    )


def _figures(bench: Bench) -> Html:
    numbers = numbered(bench)
    head: list[Child] = [
        *("method", "accuracy", "peak above bare process", "÷ eager", "s per epoch", "÷ eager", "later epochs"),
        *(
            "ms per image",
            "J per epoch",
            "÷ eager",
            "net J",
            "GFLOP per image",
            "of machine's rate",
            "predicted peak",
            "written",
        ),
    ]
    rows = [
        [
            element("span", element("b", str(numbers[row.entry.name])), " ", row.entry.name, class_="nobreak"),
            _spread(told_accuracy(bench, row), lambda share: f"{100 * share:.1f} %"),
            _spread(row.above_baseline_bytes, _mib),
            _ratio(row.to_eager.above_baseline if row.to_eager else None),
            _spread(row.epoch_s, lambda seconds: f"{seconds:.3g}"),
            _ratio(row.to_eager.epoch if row.to_eager else None),
            _spread(row.later_epoch_s, lambda seconds: f"{seconds:.3g}"),
            _spread(row.image_s, lambda seconds: f"{1000 * seconds:.3g}"),
            _spread(row.epoch_j, lambda joules: f"{joules:.3g}", modelled=row.energy_measured is False),
            _ratio(row.to_eager.epoch_j if row.to_eager else None, modelled=row.energy_measured is False),
            _spread(row.net_epoch_j, lambda joules: f"{joules:.3g}"),
            _spread(row.train_flops_per_image, lambda flops: f"{flops / 1e9:.3g}", modelled=True),
            _spread(row.gemm_share, lambda share: f"{share:.0%}", modelled=True),
            _spread(row.predicted_above_baseline_bytes, _mib, modelled=True),
            _spread(row.bytes_written, _mib),
        ]
        for row in bench.methods
    ]
    eager = [name for name in (bench.memory_baseline, bench.time_baseline) if name]
    names = f"{' (memory) and '.join(dict.fromkeys(eager))}{' (time)' if len(set(eager)) > 1 else ''}"
    by = f" ÷ eager: within a repetition, by {names}."
    return section(
        "Figures",
        table(head, rows),
        note(
            f"Medians of {bench.repetitions}, below them the lowest and highest. Accuracy is the last epoch's; seconds"
            " are of all epochs, decoding and caching included, evaluation and saving left out; joules likewise."
            f"{by if eager else ''} FLOPs are reckoned from the work that had to be done, not"
            f" measured. {MODELLED}: modelled, not measured. {augmentation(bench).replace('`', '')} "
            + joules_text(bench)
        ),
        id="figures",
    )


def _spread(spread: Spread | None, text: Callable[[float], str], *, modelled: bool = False) -> Html:
    if spread is None:
        return element("span", "—")
    low, high = text(spread.low), text(spread.high)
    range_ = element("span", f"{low} to {high}", class_="aside about") if low != high else None
    return element("span", text(spread.median) + (MODELLED if modelled else ""), range_)


def _ratio(ratio: float | None, *, modelled: bool = False) -> str:
    return "—" if ratio is None else f"{ratio:.2f}" + (MODELLED if modelled else "")


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / _MIB:.3g} MiB" if size_bytes < 1000 * _MIB else f"{size_bytes / _MIB:.0f} MiB"


def _verdict(bench: Bench) -> Html | None:
    rows = verdict_cells(bench)
    if not rows:
        return None
    return section(
        "What edgetune wins and loses",
        table(list(HEADS), rows),
        note(
            "Edgetune's figures divided by the other's, within a repetition: below 1 it needs less. Whole: from process"
            " start to exit. Points of accuracy: above 0 it is right"
            f" more often. {MODELLED}: modelled. {(losses(bench) or '').replace('`', '')}"
        ),
        id="verdict",
    )


def _reach(bench: Bench) -> Html | None:
    tables = reach_tables(bench)
    if not tables or bench.full_accuracy is None:
        return None
    return section(
        "To come as far as full fine-tuning",
        *(
            join([element("h3", name), table(list(heads), rows)])
            for name, (heads, rows) in zip(("Seconds", "Joules"), tables, strict=False)
        ),
        note(
            f"{REACH_NOTE} {bench.full_accuracy_of} ended at {percent(bench.full_accuracy)}; evaluated every"
            f" {bench.settings.evaluate_steps} steps."
        ),
        id="reach",
    )


def _conditions(bench: Bench) -> Html:
    rows = [
        [
            row.entry.name,
            str(row.runs),
            str(len(row.errors)),
            _spread(row.baseline_bytes, _mib),
            _spread(row.hottest_c, lambda celsius: f"{celsius:.0f} °C"),
            _spread(row.total_s, lambda seconds: f"{seconds:.3g} s"),
        ]
        for row in bench.methods
    ]
    known = [row for row in bench.methods if row.epoch_j]
    marks = {row.energy_measured for row in known}
    energy = join(
        [
            "Energy ",
            badge("unknown" if not known else "measured" if marks == {True} else "modelled"),
            f" {rows_sources(known)}." if known else f" {no_joules(bench.methods)}",
            f" Idle before the runs: {bench.idle_w.median:.3g} W." if bench.idle_w else None,
            f" Machine's fp32 products: {bench.gemm_flops.median / 1e9:.3g} GFLOP/s"
            f" ({bench.gemm_flops.low / 1e9:.3g} to {bench.gemm_flops.high / 1e9:.3g})."
            if bench.gemm_flops
            else None,
        ]
    )
    return section(
        "Conditions",
        element("p", energy),
        table(["method", "runs", "failed", "bare process", "hottest zone", "process in all"], rows),
        note(
            "Every run is a process of its own; within a repetition all methods see the same images in the same order"
            " from the same weights, with the same crops where they take any, and each repetition begins with the next"
            " method. Outside the figures: imports,"
            " thread pools, one matrix product and the construction of an optimizer. Nothing of the training is left"
            " out, the first epoch included."
        ),
        id="conditions",
    )


def _commands(bench: Bench) -> Html:
    written = [
        element(
            "div",
            element("h3", row.entry.name),
            note(row.entry.note) if row.entry.note else None,
            element("pre", element("code", row.command or "not run")),
            join(element("p", f"Failed: {error}", class_="alert") for error in row.errors),
        )
        for row in bench.methods
    ]
    return section("Commands", *written, id="commands")


def _machine(bench: Bench) -> Html:
    lines = [element("li", line.removeprefix("- ")) for line in machine_lines(bench)]
    return section(
        "The machine" if len(lines) < 2 else "The machines", element("ul", *lines, class_="why"), id="machine"
    )
