"""A benchmark as a person reads it: a Markdown table for a README, and the same in a terminal."""

from __future__ import annotations

from collections.abc import Callable

from edgetune.bench.records import Bench, Machine, MethodRow, Reach, Spread
from edgetune.bench.summary import SHARES, no_joules, rows_sources
from edgetune.bench.verdict import HEADS, losses, verdict_cells
from edgetune.units import format_size

_MIB = 1 << 20
REACH_NOTE = "Training time and joules until the accuracy was 95, 99 and 100 % of full fine-tuning's last one."
MODELLED = "*"  # stands beside every figure that a model gave
_HEADS = ("method", "acc.", "MiB", "rel.", "s/ep", "rel.", "later", "rel.", "GFLOP")
_COST_HEADS = ("method", "J/ep", "rel.", "net", "ms/im", "GEMM", "pred.", "all", "°C")
_SPREAD_HEADS = ("method", "runs", "MiB", "s/epoch", "later", "acc.", "bare")


def markdown(bench: Bench) -> str:
    """The whole benchmark as Markdown; its tables fit 80 columns with names up to 18 letters."""
    lines = [f"# {title(bench)}", "", *markdown_table(_HEADS, cells(bench)), "", *legend(bench), ""]
    lines += [*markdown_table(_COST_HEADS, cost_cells(bench)), "", *cost_legend(bench), ""]
    for heads, rows in reach_tables(bench):
        lines += [*markdown_table(heads, rows), ""]
    lines += [*reach_legend(bench), ""] if reach_legend(bench) else []
    if verdict_cells(bench):
        lines += [*markdown_table(HEADS, verdict_cells(bench)), "", losses(bench) or "", ""]
    lines += [f"Lowest to highest of {bench.repetitions}:", "", *markdown_table(_SPREAD_HEADS, spread_cells(bench)), ""]
    lines += [line for said in (written(bench), augmentation(bench)) if said for line in (said, "")]
    lines += [f"- `{row.entry.name}`: {_how(row)}" for row in bench.methods]
    lines += ["", *machine_lines(bench)]
    if bench.warnings:
        lines += ["", *(f"- Warning: {warning}" for warning in bench.warnings)]
    return "\n".join(lines) + "\n"


def documented(bench: Bench) -> str:
    """The tables and what they say, for a document: without commands, with the machine."""
    lines = [f"**{title(bench)}**", "", *markdown_table(_HEADS, cells(bench)), ""]
    lines += [*markdown_table(_COST_HEADS, cost_cells(bench)), ""]
    for heads, rows in reach_tables(bench):
        lines += [*markdown_table(heads, rows), ""]
    if verdict_cells(bench):
        lines += [*markdown_table(HEADS, verdict_cells(bench)), "", losses(bench) or "", ""]
    lines += ["Lowest to highest:", "", *markdown_table(_SPREAD_HEADS, spread_cells(bench)), ""]
    lines += [line for said in (written(bench), augmentation(bench)) if said for line in (said, "")]
    lines += [" ".join([*legend(bench), *cost_legend(bench), *reach_legend(bench)]), "", *machine_lines(bench)]
    lines += [f"- Warning: {warning}" for warning in bench.warnings]
    return "\n".join(lines) + "\n"


def print_bench(bench: Bench) -> None:
    """Print the tables, and what to beware of."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(title(bench), markup=False, soft_wrap=True)
    tables: list[tuple[tuple[str, ...], list[list[str]]]]
    tables = [(_HEADS, cells(bench)), (_COST_HEADS, cost_cells(bench))]
    tables += [(HEADS, verdict_cells(bench))] if verdict_cells(bench) else []
    tables += [*reach_tables(bench), (_SPREAD_HEADS, spread_cells(bench))]
    for heads, rows in tables:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for place, head in enumerate(heads):
            table.add_column(head, justify="right" if place else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    for line in filter(
        None, (*legend(bench), *cost_legend(bench), *reach_legend(bench), written(bench), augmentation(bench))
    ):
        console.print(line, markup=False, soft_wrap=True)
    for warning in bench.warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)


def title(bench: Bench) -> str:
    """What was compared."""
    settings = bench.settings
    name = f"{settings.workload.upper()}: " if settings.workload else ""
    threads = f"{settings.threads} thread" + "s" * (settings.threads > 1)
    epochs = f"{settings.epochs} epoch" + "s" * (settings.epochs > 1)
    return (
        f"{name}{settings.model}, {settings.image_size} px, batch {settings.batch_size}, {epochs} of"
        f" {settings.train_images} images{'' if settings.augment else ' without augmentation'}, {threads}"
    )


def legend(bench: Bench) -> list[str]:
    """What the columns mean."""
    if bench.memory_baseline is None:
        relative = "nothing, since no eager variant was measured"
    elif bench.memory_baseline == bench.time_baseline:
        relative = f"`{bench.memory_baseline}`"
    else:
        relative = f"`{bench.memory_baseline}` (MiB) and `{bench.time_baseline}` (time)"
    return [
        "acc.: last epoch's accuracy, %. MiB: peak above the bare process. s/ep: mean of",
        "all epochs, caching included; later: without the first. GFLOP: per training",
        "image, reckoned from what had to be done, recomputation left out. bare: MiB",
        f"before the model. Medians of {bench.repetitions}; rel.: within a repetition to",
        f"{relative}.",
    ]


def told_accuracy(bench: Bench, row: MethodRow) -> Spread | None:
    """A row's accuracy, where that says something: on made-up images every method is right."""
    return None if bench.settings.made_up else row.accuracy


def cells(bench: Bench) -> list[list[str]]:
    """The main table, row by row."""
    return [
        [
            row.entry.name,
            _middle(told_accuracy(bench, row), lambda share: f"{share * 100:.1f}"),
            _middle(row.above_baseline_bytes, _mib),
            _ratio(row.to_eager.above_baseline if row.to_eager else None),
            _middle(row.epoch_s, _seconds),
            _ratio(row.to_eager.epoch if row.to_eager else None),
            _middle(row.later_epoch_s, _seconds),
            _ratio(row.to_eager.later_epoch if row.to_eager else None),
            _middle(row.train_flops_per_image, lambda flops: f"{flops / 1e9:.3g}{MODELLED}"),
        ]
        for row in bench.methods
    ]


def cost_cells(bench: Bench) -> list[list[str]]:
    """Joules, milliseconds and the machine's share, row by row; what was modelled is marked."""
    return [
        [
            row.entry.name,
            _middle(row.epoch_j, _three) + (MODELLED if row.epoch_j and row.energy_measured is False else ""),
            _ratio(row.to_eager.epoch_j if row.to_eager else None)
            + (MODELLED if row.to_eager and row.to_eager.epoch_j and row.energy_measured is False else ""),
            _middle(row.net_epoch_j, _three),
            _middle(row.image_s, lambda seconds: _three(1000 * seconds)),
            _middle(row.gemm_share, lambda share: f"{share:.0%}{MODELLED}"),
            _middle(row.predicted_above_baseline_bytes, lambda size: _mib(size) + MODELLED),
            _middle(row.peak_bytes, _mib),
            _middle(row.hottest_c, lambda celsius: f"{celsius:.0f}"),
        ]
        for row in bench.methods
    ]


def cost_legend(bench: Bench) -> list[str]:
    """What the columns of joules and shares mean, and where joules come from."""
    rate = f" of {bench.gemm_flops.median / 1e9:.3g} GFLOP/s" if bench.gemm_flops else ""
    return [
        "J/ep: joules of an epoch, all; rel.: to eager's; net: above idle. ms/im: an",
        "epoch's time by its images. GEMM: those FLOPs a second over the machine's",
        f"rate of fp32 matrix products just then{rate}. pred.: MiB above the",
        "bare process, as planned; all: MiB of all processes at their peak, the bare",
        f"process included. °C: hottest zone. {MODELLED}: modelled, not measured.",
        joules_text(bench),
    ]


def joules_text(bench: Bench) -> str:
    """Where the joules come from, or why there are none."""
    known = [row for row in bench.methods if row.epoch_j is not None]
    if not known:
        return f"No joules: {no_joules(bench.methods)}"
    idle = f"; idle {bench.idle_w.median:.3g} W before the runs" if bench.idle_w else ""
    return f"Joules: {rows_sources(known)}{idle}."


def reach_tables(bench: Bench) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    """Seconds, and joules where they are known, to shares of full fine-tuning's accuracy: heads and rows of each."""

    def cell(row: MethodRow, reach: Reach, spread: Spread | None, text: Callable[[float], str]) -> str:
        if spread is not None:
            return text(spread.median)
        if reach.reached < row.runs:
            return f"{reach.reached} of {row.runs}" if reach.reached else "not reached"
        return "—"

    rows = [row for row in bench.methods if row.reach]
    shares = [f"{share:.0%}" for share in SHARES]
    found: list[tuple[tuple[str, ...], list[list[str]]]] = []
    if rows:
        seconds = [[row.entry.name, *(cell(row, to, to.seconds, _seconds) for to in row.reach)] for row in rows]
        found.append((("method", *(f"s to {share}" for share in shares)), seconds))
    if any(row.epoch_j for row in rows):
        joules = [[_marked(row), *(cell(row, to, to.joules, _three) for to in row.reach)] for row in rows]
        found.append((("method", *(f"J to {share}" for share in shares)), joules))
    return found


def _marked(row: MethodRow) -> str:
    return row.entry.name + (MODELLED if row.energy_measured is False else "")


def reach_legend(bench: Bench) -> list[str]:
    """What those columns mean."""
    if not any(row.reach for row in bench.methods):
        return []
    return [
        "s to, J to: training time and joules until the accuracy was 95, 99 and 100 % of",
        f"`{bench.full_accuracy_of}`'s last one ({bench.full_accuracy:.1%}), evaluated every"
        f" {bench.settings.evaluate_steps} steps;",
        "evaluations are in neither.",
    ]


def spread_cells(bench: Bench) -> list[list[str]]:
    """The table of lowest and highest figures."""
    return [
        [
            row.entry.name,
            str(row.runs),
            _range(row.above_baseline_bytes, _mib),
            _range(row.epoch_s, _seconds),
            _range(row.later_epoch_s, _seconds),
            _range(told_accuracy(bench, row), lambda share: f"{share * 100:.1f}"),
            _middle(row.baseline_bytes, _mib),
        ]
        for row in bench.methods
    ]


def written(bench: Bench) -> str:
    """What was put on disk, in one sentence: cards wear; empty where nothing was counted."""
    known = [f"`{row.entry.name}` {_mib(row.bytes_written.median)}" for row in bench.methods if row.bytes_written]
    others = any(row.runs and not row.bytes_written for row in bench.methods)
    if not known:
        return ""
    end = "; the others save nothing." if others else "."
    return f"MiB written to disk, caches and states included: {', '.join(known)}{end}"


def augmentation(bench: Bench) -> str:
    """Who trained on plain images and who on random crops, in one sentence; empty where all did alike."""
    plain = [f"`{row.entry.name}`" for row in bench.methods if row.augmented is False]
    crops = [row for row in bench.methods if row.augmented]
    if not (plain and crops):
        return ""
    return f"Trained on plain images, since their features are cached: {', '.join(plain)}; the others on random crops."


def markdown_table(heads: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """A Markdown table, padded so that it reads well as text too."""
    widths = [max(len(row[place]) for row in [list(heads), *rows]) for place in range(len(heads))]

    def line(row: list[str]) -> str:
        name, *figures = row
        padded = [name.ljust(widths[0]), *(text.rjust(width) for text, width in zip(figures, widths[1:], strict=True))]
        return "|" + "|".join(f" {text} " for text in padded) + "|"

    rule = "|" + "|".join("-" * (width + 1) + (":" if place else "-") for place, width in enumerate(widths)) + "|"
    return [line(list(heads)), rule, *map(line, rows)]


def _how(row: MethodRow) -> str:
    note = f"{row.entry.note}. " if row.entry.note else ""
    return f"{note}`{row.command}`" if row.command else f"{note}not run"


def machine_lines(bench: Bench) -> list[str]:
    """Where the runs took place, and with which versions."""
    return [f"- {machine_text(machine)}" for machine in bench.machines]


def machine_text(machine: Machine) -> str:
    """A machine and its versions in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    commit = f" ({machine.commit})" if machine.commit else ""
    return (
        f"{machine.processor}, {machine.cores} cores, {format_size(machine.memory_bytes)}; Linux {machine.kernel},"
        f" Python {machine.python}; edgetune {machine.edgetune_version}{commit}, {versions}"
    )


def _middle(spread: Spread | None, text: Callable[[float], str]) -> str:
    return text(spread.median) if spread else "—"


def _range(spread: Spread | None, text: Callable[[float], str]) -> str:
    if spread is None:
        return "—"
    low, high = text(spread.low), text(spread.high)
    return low if low == high else f"{low}–{high}"


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / _MIB:.3g}" if size_bytes < 100 * _MIB else f"{size_bytes / _MIB:.0f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.3g}" if seconds < 1000 else f"{seconds:.0f}"


def _three(joules: float) -> str:
    return f"{joules:.3g}" if joules < 1000 else f"{joules:.0f}"


def _ratio(ratio: float | None) -> str:
    return "—" if ratio is None else f"{ratio:.2f}"
