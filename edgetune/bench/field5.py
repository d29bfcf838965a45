"""`edgetune bench --workload field5`: what levers cost in plain PyTorch, beside the figures that were given.

The table (two of them: a ViT-Ti at batch 8 and a ViT-B at batch 4, 224 px, 100 classes) was measured on one
core of another AMD EPYC with AVX2, torch 2.14.1, timm 1.0.31; its times carry about ±10 %. Here every row runs again in
processes of its own (`edgetune.bench.field5_row`), all rows once before any runs again, and both stand side by side. Of
a row's times the lowest counts: what others do to a machine only ever adds. A run that has a line is not repeated.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgetune import schema
from edgetune.bench.entries import MALLOC_VARIABLES, TRIMMED
from edgetune.bench.machine import Bystanders, describe_machine
from edgetune.bench.page import machine_text
from edgetune.bench.process import how_it_ended, measure_gemm
from edgetune.bench.records import Machine
from edgetune.device.system import System
from edgetune.errors import EdgetuneError, MissingDependencyError
from edgetune.files import append_line, storage_errors, write_atomically
from edgetune.processes import module_command
from edgetune.schema import Record

MB = 1 << 20  # so the given MB must be: what autograd saves is a sum that needs no measuring
_OTHERS_SHARE = 0.05  # of all cores' time: from here on other processes show in what is timed
_ROUNDED_MB = 1.0  # to which those figures are given
_MEMORY_NOISE, _TIME_NOISE = 0.1, 0.15  # a ratio of two times that carry 10 % each


class Given(NamedTuple):
    """A row as given; of some rows only the factors against full fine-tuning are."""

    name: str
    saved_mb: float | None = None
    peak_mb: float | None = None
    image_ms: float | None = None
    peak_factor: float | None = None
    time_factor: float | None = None


class Table(NamedTuple):
    """A model and its rows; the first one is full fine-tuning."""

    model: str
    title: str
    batch_size: int
    rows: tuple[Given, ...]


TABLES = (
    Table(
        "vit_tiny_patch16_224",
        "ViT-Ti/16",
        8,
        (
            Given("all, AdamW", 229, 280, 149),
            Given("all, SGD without momentum", 229, 236, 156),
            Given("head only, cached features", 1, 3, 0.1),
            Given("head only", 1, 16, 44),
            Given("last 1 block", 21, 32, 50),
            Given("last 2 blocks", 39, 54, 58),
            Given("last 4 blocks", 76, 98, 70),
            Given("last 6 blocks", 113, 142, 85),
            Given("4 blocks spread (0, 4, 7, 11)", 169, 191, 99),
            Given("biases only", 146, 159, 106),
            Given("norms only", 141, 154, 99),
            Given("attention weights only", 154, 180, 112),
            Given("LoRA r=8 on qkv and proj", 155, 169, 116),
            Given("side network", 27, 33, 48),
            Given("all, tokens kept 70 %", 169, 219, 110),
            Given("all, tokens kept 50 %", 128, 177, 76),
            Given("all, tokens kept 30 %", 87, 136, 58),
            Given("last 4 blocks, tokens kept 50 %", 38, 58, 44),
            Given("last 6 blocks, tokens kept 60 %", 68, 96, 58),
            Given("checkpoint every block", 21, 98, 199),
            Given("micro-batch 4", 117, 188, 150),
            Given("micro-batch 1", 33, 103, 181),
            Given("saved tensors in int8", 62, 128, 162),
            Given("AdamW inside backward", 229, 280, 161),
            Given("bf16 autocast", 139, 191, 1929),
            Given("MeZO", 0, 28, 121),
            Given("all, 192 px", peak_factor=1.3, time_factor=1.3),
            Given("all, 160 px", peak_factor=1.7, time_factor=2.1),
            Given("all, 128 px", saved_mb=229 / 3, peak_factor=2.2, time_factor=3.7),
        ),
    ),
    Table(
        "vit_base_patch16_224",
        "ViT-B/16",
        4,
        (
            Given("all, AdamW", 451, 1128, 1683),
            Given("all, SGD inside backward", 451, 470, 1511),
            Given("last 4 blocks", 153, 390, 878),
            Given("last 4 blocks, tokens kept 50 %", 77, 347, 454),
            Given("LoRA r=8 on qkv and proj", 308, 334, 1116),
            Given("biases only", 284, 307, 1045),
            Given("all, tokens kept 50 %", 248, 1018, 973),
            Given("checkpoint every block", 35, 1021, 1848),
            Given("side network", 54, 72, 591),
        ),
    ),
)


class FieldRow(Record, frozen=True):
    """One row as measured here: a line of `field5.jsonl`."""

    model: str
    row: str
    saved_bytes: int
    peak_bytes: int | None  # above the level with the model built
    image_s: float  # CPU seconds of the process
    step_s: list[float]
    others_share: float | None
    machine: Machine
    created: str
    gemm_flops: float | None = None  # FLOP/s of fp32 matrix products on one thread, the better of before and after
    warnings: list[str] = msgspec.field(default_factory=list)


class Field5(Record, frozen=True, tag_field="schema", tag="edgetune/field5/1"):
    """All rows measured so far; the given figures are in `edgetune.bench.field5`."""

    rows: list[FieldRow]
    created: str


def run_field5(
    out: Path,
    say: Callable[[str], None] = lambda line: None,
    rows: Sequence[str] | None = None,
    repetitions: int = 1,
) -> Field5:
    """Measure every row that has too few lines; leave `field5.jsonl`, `field5.json` and `field5.md` at `out`.

    Args:
        out: a folder.
        say: shows a line to the user.
        rows: names of rows; None: all.
        repetitions: of every row.

    Raises:
        MissingDependencyError: timm is not installed.
        EdgetuneError: rows failed; the others were measured.
    """
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    log = out / "field5.jsonl"
    machine = describe_machine(System())
    failed: dict[str, str] = {}
    wanted = [(table, given) for table in TABLES for given in table.rows if rows is None or given.name in rows]
    for (table, given), repetition in [(each, repetition) for repetition in range(repetitions) for each in wanted]:
        name = f"{table.title}, {given.name}"
        if name in failed:
            continue
        if sum((row.model, row.row) == (table.model, given.name) for row in _lines(log)) > repetition:
            say(f"{name}: done before")
            continue
        try:
            found = _measure(table, given, machine)
        except MissingDependencyError:
            raise
        except EdgetuneError as error:  # for want of memory, perhaps: other rows need less
            failed[name] = str(error)
            say(failed[name])
            continue
        append_line(log, msgspec.json.encode(found))
        peak = "unknown" if found.peak_bytes is None else f"{found.peak_bytes / MB:.0f} MB"
        say(f"{name}: {peak}, {1000 * found.image_s:.3g} ms an image")
        _write(out, log)
    made = _write(out, log)
    if failed:
        first = next(iter(failed.values()))
        raise EdgetuneError(f"{first} ({len(failed)} failed in all); the same command tries them again.")
    return made


def _write(out: Path, log: Path) -> Field5:
    made = Field5(rows=_lines(log), created=schema.now())
    schema.save(made, out / "field5.json")
    write_atomically(out / "field5.md", field5_markdown(made).encode())
    return made


def _measure(table: Table, given: Given, machine: Machine) -> FieldRow:
    if find_spec("timm") is None:
        raise MissingDependencyError("timm", "bench", "--workload field5")
    environment = {name: value for name, value in os.environ.items() if name not in MALLOC_VARIABLES} | TRIMMED
    before = measure_gemm(threads=1)
    bystanders = Bystanders()
    command = [*module_command("edgetune.bench.field5_row"), table.model, str(table.batch_size), given.name]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        last = (done.stderr.strip() or how_it_ended(done.returncode)).splitlines()[-1]
        raise EdgetuneError(f"{table.title}, {given.name} failed: {last}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return FieldRow(
        model=table.model,
        row=given.name,
        others_share=bystanders.share(),
        gemm_flops=max(filter(None, (before, measure_gemm(threads=1))), default=None),
        machine=machine,
        created=schema.now(),
        **said,
    )


def _lines(log: Path) -> list[FieldRow]:
    """The rows of a log; a torn line is no row."""
    found = []
    for line in log.read_bytes().splitlines() if log.exists() else []:
        try:
            found.append(msgspec.json.decode(line, type=FieldRow))
        except msgspec.DecodeError:
            continue
    return found


def field5_markdown(made: Field5) -> str:
    """Given and measured side by side; `!` marks what differs by more than the noise."""
    lines = []
    for table in TABLES:
        rows = sorted((row for row in made.rows if row.model == table.model), key=lambda row: -row.image_s)
        found = {row.row: row for row in rows}  # the last of a name: its fastest run
        if not found:
            continue
        lines += [
            f"**{table.title}**, batch {table.batch_size}, one thread: given → here",
            "",
            "| what trains / how | saved MB | peak MB | peak, less by | ms/image | faster by | at one rate |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *(_line(given, found, table.rows[0]) for given in table.rows if given.name in found),
            "",
        ]
    lines += [
        f"`!`: more than {_MEMORY_NOISE:.0%} off in memory, {_TIME_NOISE:.0%} off in the factor of time. Milliseconds"
        " are the process's own CPU time, and of other machines. At one rate: the factor of time had the machine"
        " multiplied matrices as fast around either row as around the other; —: not measured.",
    ]
    lines += _spread(made.rows)
    rates = sorted(row.gemm_flops for row in made.rows if row.gemm_flops)
    if rates:
        lines.append(
            f"One thread's rate of fp32 matrix products around the rows: {rates[0] / 1e9:.3g} to"
            f" {rates[-1] / 1e9:.3g} GFLOP/s, {rates[len(rates) // 2] / 1e9:.3g} in the middle."
        )
    machines = list(dict.fromkeys(machine_text(row.machine) for row in made.rows))
    if len(machines) > 1:
        lines.append("Rows are of different machines or versions (below): factors between them mean little.")
    lines += [f"- {text}" for text in machines]
    shares = [row.others_share for row in made.rows if row.others_share is not None]
    if shares and max(shares) > _OTHERS_SHARE:
        lines.append(
            f"Other processes used {min(shares):.0%} to {max(shares):.0%} of all cores meanwhile: read times as upper"
            " bounds."
        )
    return "\n".join(lines) + "\n"


def _spread(rows: Sequence[FieldRow]) -> list[str]:
    """One line: how far the times of a row lie apart; none where rows ran once."""
    times: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        times.setdefault((row.model, row.row), []).append(row.image_s)
    apart = sorted(max(known) / min(known) - 1 for known in times.values() if len(known) > 1)
    if not apart:
        return []
    return [
        f"Times are the lowest of up to {max(map(len, times.values()))} runs; the highest of a row's lies"
        f" {apart[len(apart) // 2]:.0%} above it in the middle of {len(apart)} rows, {apart[-1]:.0%} at most."
    ]


def _line(given: Given, found: dict[str, FieldRow], full: Given) -> str:
    row, ours = found[given.name], found.get(full.name)
    peak_factor = given.peak_factor or _factor(full.peak_mb, given.peak_mb)
    time_factor = given.time_factor or _factor(full.image_ms, given.image_ms)
    our_peak = _factor(ours.peak_bytes, row.peak_bytes) if ours else None
    our_time = _factor(ours.image_s, row.image_s) if ours else None
    peak_mb = None if row.peak_bytes is None else row.peak_bytes / MB
    cells = [
        _pair(given.saved_mb, row.saved_bytes / MB, _MEMORY_NOISE, _ROUNDED_MB),
        _pair(given.peak_mb, peak_mb, _MEMORY_NOISE, _ROUNDED_MB),
        _pair(peak_factor, our_peak, _MEMORY_NOISE),
        _pair(given.image_ms, 1000 * row.image_s, None),
        _pair(time_factor, our_time, _TIME_NOISE),
    ]
    return f"| {given.name} | {' | '.join(cells)} | {_at_one_rate(ours, row)} |"


def _at_one_rate(full: FieldRow | None, row: FieldRow) -> str:
    """How much faster a row is by what the machine could have multiplied meanwhile."""
    if full is None or not full.gemm_flops or not row.gemm_flops:
        return "—"
    return f"{full.image_s * full.gemm_flops / (row.image_s * row.gemm_flops):.3g}"


def _factor(full: float | None, row: float | None) -> float | None:
    return full / row if full and row else None


def _pair(given: float | None, here: float | None, noise: float | None, least: float = 0.0) -> str:
    def text(value: float | None) -> str:
        return "—" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"

    off = (
        given and here is not None and noise is not None and abs(here / given - 1) > noise and abs(here - given) > least
    )
    return f"{text(given)} → {text(here)}{' !' if off else ''}"
