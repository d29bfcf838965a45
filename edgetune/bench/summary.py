"""From runs to a benchmark: medians over repetitions, their spread, and ratios within them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec

from edgetune import schema
from edgetune.__about__ import __version__
from edgetune.bench.entries import is_eager
from edgetune.bench.records import (
    Bench,
    CurvePoint,
    Entry,
    Figures,
    Machine,
    MethodRow,
    Ratios,
    Reach,
    Run,
    Settings,
    Spread,
)

SHARES = (0.95, 0.99, 1.0)  # of full fine-tuning's accuracy, for what it takes to come there
_FULL = ("eager-full", "eager-full-fused", "eager-full-trimmed", "full")  # whose accuracy that is: the first there is
_REFERENCE = "alast"
_OTHERS_SHARE = 0.05  # of all cores' time: from here on other processes show in what is timed

_SCATTERED, _SCATTERED_S = 2.0, 900.0  # times what the runs took, and seconds: a repetition that was taken up later

_OF_NO_CONCERN = "no --profile was given"  # that a plan could not predict takes nothing from what was measured


def summarise(settings: Settings, entries: Sequence[Entry], runs: Sequence[Run], repetitions: int) -> Bench:
    """The record of a benchmark.

    Memory is divided by the lowest peak among the eager variants, times by those of the variant with the fastest
    epochs: eager PyTorch is given whichever of its settings is best for the figure at hand.

    Args:
        settings: what all runs have in common.
        entries: the rows, in their order.
        runs: of these entries; failed ones count as such.
        repetitions: wanted of each.
    """
    rows = [_row(entry, [run for run in runs if run.entry.name == entry.name], settings) for entry in entries]
    eager = [row for row in rows if is_eager(row.entry)]
    reference = next(
        (row for name in _FULL for row in rows if row.entry.name == name and row.accuracy is not None), None
    )
    full = reference.accuracy.median if reference and reference.accuracy else None
    rows = [
        msgspec.structs.replace(row, reach=_reach(_figures(runs, row.entry), full))
        if full is not None and settings.evaluate_steps and not settings.made_up
        else row
        for row in rows
    ]
    leanest = _least(eager, lambda row: row.above_baseline_bytes)
    fastest = _least(eager, lambda row: row.epoch_s)
    alast = next((row for row in rows if row.entry.name == _REFERENCE), None)
    return Bench(
        settings=settings,
        repetitions=repetitions,
        methods=[
            msgspec.structs.replace(row, to_eager=ratios(row, leanest, fastest), to_alast=ratios(row, alast, alast))
            for row in rows
        ],
        memory_baseline=leanest.entry.name if leanest else None,
        time_baseline=fastest.entry.name if fastest else None,
        full_accuracy=full,
        full_accuracy_of=reference.entry.name if reference else None,
        idle_w=Spread.known([run.idle_w for run in runs]),
        gemm_flops=Spread.known([run.rate_flops for run in runs]),
        machines=_machines(runs),
        warnings=_warnings(rows, runs, repetitions),
        edgetune_version=__version__,
        created=schema.now(),
    )


def ratios(row: MethodRow, memory: MethodRow | None, time: MethodRow | None) -> Ratios | None:
    """A row by the rows that `memory` and `time` (and joules) are measured by; None without."""
    if memory is None and time is None:
        return None
    return Ratios(
        above_baseline=row.by(memory, "above_baseline_bytes"),
        epoch=row.by(time, "epoch_s"),
        later_epoch=row.by(time, "later_epoch_s"),
        epoch_j=row.by(time, "epoch_j"),
    )


def _least(rows: Sequence[MethodRow], figure: Callable[[MethodRow], Spread | None]) -> MethodRow | None:
    """The row whose median is the lowest; None where none has that figure."""
    known = [(spread.median, place) for place, row in enumerate(rows) if (spread := figure(row)) is not None]
    return rows[min(known)[1]] if known else None


def _row(entry: Entry, runs: Sequence[Run], settings: Settings) -> MethodRow:
    runs = sorted(runs, key=lambda run: run.repetition)
    good = [(run, run.figures) for run in runs if run.figures is not None]

    def over(figure: Callable[[Figures], float | None]) -> Spread | None:
        return Spread.of([figure(figures) for _, figures in good])

    def image_s(figures: Figures) -> float | None:
        return figures.epoch_s / settings.train_images if figures.epoch_s is not None else None

    def net_j(run: Run, figures: Figures) -> float | None:
        if run.idle_w is None or figures.epoch_j is None or figures.epoch_s is None or not figures.energy_measured:
            return None
        return figures.epoch_j - run.idle_w * figures.epoch_s

    def gemm_share(run: Run, figures: Figures) -> float | None:
        if not run.rate_flops or not figures.epochs_s:
            return None
        return figures.train_flops_per_image * figures.images / sum(figures.epochs_s) / run.rate_flops

    first = good[0][1] if good else None
    sources = dict.fromkeys((f.energy_source, f.energy_scope, f.energy_measured) for _, f in good if f.energy_source)
    one = len(sources) < 2  # joules of different things have no median
    return MethodRow(
        entry=entry,
        command=runs[0].command if runs else None,
        runs=len(good),
        errors=[run.error for run in runs if run.error is not None],
        baseline_bytes=over(lambda figures: figures.baseline_bytes),
        above_baseline_bytes=over(lambda figures: figures.above_baseline_bytes),
        predicted_above_baseline_bytes=over(lambda figures: figures.predicted_above_baseline_bytes),
        peak_bytes=over(lambda figures: figures.peak_bytes),
        epoch_s=over(lambda figures: figures.epoch_s),
        first_epoch_s=over(lambda figures: figures.first_epoch_s),
        later_epoch_s=over(lambda figures: figures.later_epoch_s),
        image_s=over(image_s),
        total_s=Spread.of([run.total_s for run, _ in good]),
        accuracy=over(lambda figures: figures.accuracy),
        train_flops_per_image=over(lambda figures: figures.train_flops_per_image),
        bytes_written=over(lambda figures: figures.bytes_written),
        epoch_j=over(lambda figures: figures.epoch_j) if one else None,
        net_epoch_j=Spread.of([net_j(run, figures) for run, figures in good]) if one else None,
        energy_measured=_all_measured([figures for _, figures in good]),
        energy_source=" and ".join(dict.fromkeys(source or "" for source, _, _ in sources)) or None,
        energy_scope=" and ".join(dict.fromkeys(scope or "unknown" for _, scope, _ in sources)) or None,
        gemm_share=Spread.of([gemm_share(run, figures) for run, figures in good]),
        hottest_c=Spread.of([_hottest_c(run) for run, _ in good]),
        curve=first.curve if first else [],
        ended_well=[run.repetition for run, _ in good],
        augmented=first.augmented if first else None,
    )


def _figures(runs: Sequence[Run], entry: Entry) -> list[Figures]:
    return [run.figures for run in runs if run.entry.name == entry.name and run.figures is not None]


def _reach(figures: Sequence[Figures], full: float) -> list[Reach]:
    """What coming to shares of full fine-tuning's accuracy took; the last epoch's end is a point of the course too."""
    found = []
    for share in SHARES:
        points = [_first(each, share * full) for each in figures]
        reached = [point for point in points if point is not None]
        all_did = bool(points) and len(reached) == len(points)
        alike = len({(each.energy_source, each.energy_scope) for each in figures}) < 2
        found.append(
            Reach(
                share=share,
                accuracy=share * full,
                reached=len(reached),
                seconds=Spread.of([point.train_s for point in reached]) if all_did else None,
                joules=Spread.of([point.train_j for point in reached]) if all_did and alike else None,
            )
        )
    return found


def _first(figures: Figures, accuracy: float) -> CurvePoint | None:
    """The first point of the course that is as accurate as that."""
    points = list(figures.curve)
    if figures.accuracy is not None:
        joules = None if figures.epoch_j is None else figures.epoch_j * len(figures.epochs_s)
        points.append(CurvePoint(step=-1, accuracy=figures.accuracy, train_s=sum(figures.epochs_s), train_j=joules))
    return next((point for point in points if point.accuracy >= accuracy), None)


def _all_measured(figures: Sequence[Figures]) -> bool | None:
    known = [each.energy_measured for each in figures if each.energy_measured is not None]
    return all(known) if known else None


def _hottest_c(run: Run) -> float | None:
    known = [value for pair in run.temperatures_mc.values() for value in pair if value is not None]
    return max(known) / 1000 if known else None


def rows_sources(rows: Sequence[MethodRow]) -> str:
    """Where the joules of some rows come from, in words."""
    named = [f"{row.energy_source}, scope {row.energy_scope}" for row in rows if row.energy_source]
    return "; ".join(dict.fromkeys(named)) or "unknown"


def no_joules(rows: Sequence[MethodRow]) -> str:
    """Why no method has any, as a sentence's end."""
    answered = [row for row in rows if row.energy_source]
    if answered:
        return f"readings left holes, or differ in their source ({rows_sources(answered)})."
    return "no sensor answered and no --power was given."


def _machines(runs: Sequence[Run]) -> list[Machine]:
    found: list[Machine] = []
    for run in runs:
        if run.machine not in found:
            found.append(run.machine)
    return found


def _scattered_h(runs: Sequence[Run]) -> float | None:
    """Over how many hours the runs of a repetition were made, where that is far more than they took."""
    ended = [datetime.fromisoformat(run.created) for run in runs]
    if not ended:
        return None
    between_s = (max(ended) - min(ended)).total_seconds()
    if any(run.total_s is None for run in runs):  # nobody knows what a failed one took
        return None
    most_s = _SCATTERED * sum(run.total_s or 0.0 for run in runs) + _SCATTERED_S
    return between_s / 3600 if between_s > most_s else None


def _warnings(rows: Sequence[MethodRow], runs: Sequence[Run], repetitions: int) -> list[str]:
    said = [
        f"{row.entry.name}: {len(row.errors)} of {repetitions} repetitions failed: {row.errors[0]}"
        for row in rows
        if row.errors
    ]
    if any(len(_machines([run for run in runs if run.repetition == at])) > 1 for at in range(repetitions)):
        said.append("runs of one repetition are of different machines or versions (see machines): ratios mean little.")
    elif len(_machines(runs)) > 1:
        said.append("repetitions are of different machines or versions (see machines): ratios are formed within each.")
    said += [
        f"runs of repetition {at} were made over {hours:.1f} hours: its ratios are of a machine at different hours."
        for at in range(repetitions)
        if (hours := _scattered_h([run for run in runs if run.repetition == at])) is not None
    ]
    above = [row.entry.name for row in rows if row.gemm_share is not None and row.gemm_share.high > 1]
    if above:
        said.append(
            f"{', '.join(above)}: a run made more than all of the machine's rate of matrix products, so the machine was"
            " slower while that was taken: shares of it are rough."
        )
    crowded = [run for run in runs if run.others_share is not None and run.others_share > _OTHERS_SHARE]
    if crowded:
        said.append(
            f"other processes used up to {max(run.others_share or 0 for run in crowded):.0%} of the processor during"
            f" {len(crowded)} of {len(runs)} runs: times may be too high; run it again on an idle machine."
        )
    modelled = [row for row in rows if row.energy_measured is False]
    if modelled:
        said.append(f"joules are modelled, not measured: {rows_sources(modelled)}.")
    mixed = [row for row in rows if row.energy_source and " and " in f"{row.energy_source} {row.energy_scope}"]
    if mixed:
        said.append(
            f"{', '.join(row.entry.name for row in mixed)}: repetitions have joules of different sources"
            f" ({rows_sources(mixed)}), so none are given."
        )
    hot = [run for run in runs if run.throttled]
    if hot:
        said.append(f"the machine was throttled during {len(hot)} of {len(runs)} runs: their times are too high.")
    seen = [warning for run in runs if run.figures for warning in run.figures.warnings]
    return said + list(dict.fromkeys(warning for warning in seen if not warning.startswith(_OF_NO_CONCERN)))
