"""`edgetune bench --workload field5`: what levers cost in plain PyTorch, beside the field's own figures.

The published table (two of them: a ViT-Ti at batch 8 and a ViT-B at batch 4, 224 px, 100 classes) was measured on one
core of another AMD EPYC with AVX2, torch 2.14.1, timm 1.0.31; its times carry about ±10 %. Here every row runs again in
a process of its own (`edgetune.bench.field5_row`), and both stand side by side. A row that has a line is not repeated.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgetune import schema
from edgetune.bench.entries import MALLOC_VARIABLES, TRIMMED
from edgetune.bench.machine import Bystanders, describe_machine
from edgetune.bench.records import Machine
from edgetune.device.system import System
from edgetune.errors import EdgetuneError
from edgetune.files import storage_errors, write_atomically
from edgetune.schema import Record

MB = 1 << 20  # so the published MB must be: what autograd saves is a sum that needs no measuring
_OTHERS_SHARE = 0.05  # of all cores' time: from here on other processes show in what is timed
_ROUNDED_MB = 1.0  # to which the published figures are given
_MEMORY_NOISE, _TIME_NOISE = 0.1, 0.15  # a ratio of two times that carry 10 % each


class Published(NamedTuple):
    """A row as published; of some rows only the factors against full fine-tuning are."""

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
    rows: tuple[Published, ...]


TABLES = (
    Table(
        "vit_tiny_patch16_224",
        "ViT-Ti/16",
        8,
        (
            Published("all, AdamW", 229, 280, 149),
            Published("all, SGD without momentum", 229, 236, 156),
            Published("head only, cached features", 1, 3, 0.1),
            Published("head only", 1, 16, 44),
            Published("last 1 block", 21, 32, 50),
            Published("last 2 blocks", 39, 54, 58),
            Published("last 4 blocks", 76, 98, 70),
            Published("last 6 blocks", 113, 142, 85),
            Published("4 blocks spread (0, 4, 7, 11)", 169, 191, 99),
            Published("biases only", 146, 159, 106),
            Published("norms only", 141, 154, 99),
            Published("attention weights only", 154, 180, 112),
            Published("LoRA r=8 on qkv and proj", 155, 169, 116),
            Published("side network", 27, 33, 48),
            Published("all, tokens kept 70 %", 169, 219, 110),
            Published("all, tokens kept 50 %", 128, 177, 76),
            Published("all, tokens kept 30 %", 87, 136, 58),
            Published("last 4 blocks, tokens kept 50 %", 38, 58, 44),
            Published("last 6 blocks, tokens kept 60 %", 68, 96, 58),
            Published("checkpoint every block", 21, 98, 199),
            Published("micro-batch 4", 117, 188, 150),
            Published("micro-batch 1", 33, 103, 181),
            Published("saved tensors in int8", 62, 128, 162),
            Published("AdamW inside backward", 229, 280, 161),
            Published("bf16 autocast", 139, 191, 1929),
            Published("MeZO", 0, 28, 121),
            Published("all, 192 px", peak_factor=1.3, time_factor=1.3),
            Published("all, 160 px", peak_factor=1.7, time_factor=2.1),
            Published("all, 128 px", saved_mb=229 / 3, peak_factor=2.2, time_factor=3.7),
        ),
    ),
    Table(
        "vit_base_patch16_224",
        "ViT-B/16",
        4,
        (
            Published("all, AdamW", 451, 1128, 1683),
            Published("all, SGD inside backward", 451, 470, 1511),
            Published("last 4 blocks", 153, 390, 878),
            Published("last 4 blocks, tokens kept 50 %", 77, 347, 454),
            Published("LoRA r=8 on qkv and proj", 308, 334, 1116),
            Published("biases only", 284, 307, 1045),
            Published("all, tokens kept 50 %", 248, 1018, 973),
            Published("checkpoint every block", 35, 1021, 1848),
            Published("side network", 54, 72, 591),
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
    warnings: list[str] = msgspec.field(default_factory=list)


class Field5(Record, frozen=True, tag_field="schema", tag="edgetune/field5/1"):
    """All rows measured so far; the published figures are in `edgetune.bench.field5`."""

    rows: list[FieldRow]
    created: str


def run_field5(out: Path, say: Callable[[str], None] = lambda line: None, rows: Sequence[str] | None = None) -> Field5:
    """Measure every row that has no line yet; leave `field5.jsonl`, `field5.json` and `field5.md` at `out`.

    Args:
        out: a folder.
        say: shows a line to the user.
        rows: names of rows; None: all.

    Raises:
        EdgetuneError: a row failed.
    """
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    log = out / "field5.jsonl"
    machine = describe_machine(System())
    for table in TABLES:
        for published in table.rows:
            if rows is not None and published.name not in rows:
                continue
            if any((row.model, row.row) == (table.model, published.name) for row in _lines(log)):
                say(f"{table.title}, {published.name}: done before")
                continue
            found = _measure(table, published, machine)
            with storage_errors(log), log.open("ab") as lines:
                lines.write(msgspec.json.encode(found) + b"\n")
            peak = "unknown" if found.peak_bytes is None else f"{found.peak_bytes / MB:.0f} MB"
            say(f"{table.title}, {published.name}: {peak}, {1000 * found.image_s:.3g} ms an image")
            _write(out, log)
    return _write(out, log)


def _write(out: Path, log: Path) -> Field5:
    made = Field5(rows=_lines(log), created=schema.now())
    schema.save(made, out / "field5.json")
    write_atomically(out / "field5.md", field5_markdown(made).encode())
    return made


def _measure(table: Table, published: Published, machine: Machine) -> FieldRow:
    environment = {name: value for name, value in os.environ.items() if name not in MALLOC_VARIABLES} | TRIMMED
    bystanders = Bystanders()
    command = [sys.executable, "-m", "edgetune.bench.field5_row", table.model, str(table.batch_size), published.name]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise EdgetuneError(f"{table.title}, {published.name} failed: {last}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return FieldRow(
        model=table.model,
        row=published.name,
        others_share=bystanders.share(),
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
    """Published and measured side by side; `!` marks what differs by more than the noise."""
    lines = []
    for table in TABLES:
        found = {row.row: row for row in made.rows if row.model == table.model}
        if not found:
            continue
        lines += [
            f"**{table.title}**, batch {table.batch_size}, one thread: published → here",
            "",
            "| what trains / how | saved MB | peak MB | peak, less by | ms/image | faster by |",
            "|---|---:|---:|---:|---:|---:|",
            *(_line(published, found, table.rows[0]) for published in table.rows if published.name in found),
            "",
        ]
    lines += [
        f"`!`: more than {_MEMORY_NOISE:.0%} off in memory, {_TIME_NOISE:.0%} off in the factor of time. Milliseconds"
        " are the process's own CPU time, and of other machines.",
    ]
    shares = [row.others_share for row in made.rows if row.others_share is not None]
    if shares and max(shares) > _OTHERS_SHARE:
        lines.append(
            f"Other processes used {min(shares):.0%} to {max(shares):.0%} of all cores meanwhile: read times as upper"
            " bounds."
        )
    return "\n".join(lines) + "\n"


def _line(published: Published, found: dict[str, FieldRow], full: Published) -> str:
    row, ours = found[published.name], found.get(full.name)
    peak_factor = published.peak_factor or _factor(full.peak_mb, published.peak_mb)
    time_factor = published.time_factor or _factor(full.image_ms, published.image_ms)
    our_peak = _factor(ours.peak_bytes, row.peak_bytes) if ours else None
    our_time = _factor(ours.image_s, row.image_s) if ours else None
    peak_mb = None if row.peak_bytes is None else row.peak_bytes / MB
    cells = [
        _pair(published.saved_mb, row.saved_bytes / MB, _MEMORY_NOISE, _ROUNDED_MB),
        _pair(published.peak_mb, peak_mb, _MEMORY_NOISE, _ROUNDED_MB),
        _pair(peak_factor, our_peak, _MEMORY_NOISE),
        _pair(published.image_ms, 1000 * row.image_s, None),
        _pair(time_factor, our_time, _TIME_NOISE),
    ]
    return f"| {published.name} | {' | '.join(cells)} |"


def _factor(full: float | None, row: float | None) -> float | None:
    return full / row if full and row else None


def _pair(published: float | None, here: float | None, noise: float | None, least: float = 0.0) -> str:
    def text(value: float | None) -> str:
        return "—" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"

    off = (
        published
        and here is not None
        and noise is not None
        and abs(here / published - 1) > noise
        and abs(here - published) > least
    )
    return f"{text(published)} → {text(here)}{' !' if off else ''}"
