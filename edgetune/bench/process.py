"""One run of one method in a process of its own, and the figures it left.

A fresh process each time: memory that an earlier run left with the allocator, warm caches of a library and a grown heap
would otherwise count for or against whoever comes next.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from edgetune import schema
from edgetune.bench.entries import MALLOC_VARIABLES, PEERS
from edgetune.bench.records import CurvePoint, Entry, Figures
from edgetune.errors import EdgetuneError
from edgetune.processes import module_command

_KEPT = frozenset(
    ("plan.json", "profile.json", "config.json", "metrics.jsonl", "result.json", "report.html", "figures.json")
)
_MOST_OF_AN_ERROR = 500  # characters
_T = TypeVar("_T")


class Measured(NamedTuple):
    """A run that ended well: its figures, and the seconds from its process's start to its exit."""

    figures: Figures
    total_s: float


def run_fit(words: Sequence[str], environment: dict[str, str], folder: Path, epochs: int) -> Measured:
    """Run `edgetune fit`, and read the artifacts it leaves in `folder`.

    Args:
        words: the command line after `edgetune`.
        environment: variables of its own.
        folder: its run folder.
        epochs: that it has to reach to be comparable.

    Raises:
        EdgetuneError: it failed, or ended before its epochs did.
    """
    ended = execute(["edgetune", *words], environment)
    if ended.status not in (0, 4):
        raise EdgetuneError(ended.said)
    result = schema.load(folder / "result.json", schema.Result)
    plan = schema.load(folder / "plan.json", schema.Plan)
    ran = len(result.time.epochs_s)
    if result.stopped_by != "epochs" or ran != epochs:
        raise EdgetuneError(f"{ran} of {epochs} epochs ran, ended by {result.stopped_by}; not comparable.")
    memory, work = result.memory, result.work
    lines = [_decoded(line, dict[str, Any], "metrics.jsonl") for line in _read(folder / "metrics.jsonl").splitlines()]
    figures = Figures(
        baseline_bytes=memory.baseline_bytes,
        peak_bytes=memory.measured_peak_bytes,
        predicted_above_baseline_bytes=plan.predicted.peak_memory_bytes - plan.predicted.memory.runtime,
        epochs_s=result.time.epochs_s,
        eval_s=result.time.eval_s,
        accuracy=result.accuracy.last,
        train_losses=[line["train_loss"] for line in lines if line["kind"] == "epoch"],
        images=work.images,
        train_flops_per_image=work.train_flops / work.images,
        bytes_written=work.bytes_written,
        warnings=tuple(result.warnings),
        epochs_j=result.energy.epochs_j,
        energy_source=result.energy.source,
        energy_scope=result.energy.scope,
        energy_measured=result.energy.measured if result.energy.source else None,
        curve=_curve(lines),
        epoch_spans_s=_spans(lines, result.time.epochs_s),
        augmented=plan.recipe.augment,
    )
    return Measured(figures, ended.seconds)


def run_peer(words: Sequence[str], entry: Entry, plan: Path, figures: Path, root: Path | None = None) -> Measured:
    """Plan, for data and rates, then run the peer.

    Args:
        words: the command line that writes the plan, after `edgetune`.
        entry: the variant, and its environment.
        plan: where the command line writes it.
        figures: where the peer writes its figures.
        root: where it reads sensors.

    Raises:
        EdgetuneError: either failed.
    """
    ended = execute(["edgetune", *words], {})
    if ended.status == 0:
        order = [PEERS[entry.method].module, entry.method, str(plan), str(figures), *([str(root)] if root else [])]
        ended = execute(order, entry.environment)
    if ended.status:
        raise EdgetuneError(ended.said)
    return Measured(_decoded(_read(figures), Figures, figures.name), ended.seconds)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EdgetuneError(f"{path} can't be read ({error.strerror}): the run left nothing to count.") from error


def _decoded(raw: bytes, type: type[_T], name: str) -> _T:
    try:
        return msgspec.json.decode(raw, type=type)
    except msgspec.DecodeError as error:
        raise EdgetuneError(f"{name} of the run can't be understood ({error}).") from error


class Ended(NamedTuple):
    """How a process ended, what it said last, and the wall time it took."""

    status: int
    said: str
    seconds: float


def execute(words: Sequence[str], environment: dict[str, str]) -> Ended:
    """Run a module of edgetune in a fresh process."""
    inherited = {name: value for name, value in os.environ.items() if name not in MALLOC_VARIABLES}
    started = time.monotonic()
    try:
        done = subprocess.run(
            [*module_command(words[0]), *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=inherited | environment,
            check=False,
        )
    except OSError as error:
        raise EdgetuneError(f"a process could not be started ({error.strerror}).") from error
    seconds = time.monotonic() - started
    if done.returncode == 130:
        raise KeyboardInterrupt
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    said = lines[-1] if lines and done.returncode >= 0 else how_it_ended(done.returncode)
    return Ended(done.returncode, said.removeprefix("error: ")[:_MOST_OF_AN_ERROR], seconds)


def how_it_ended(status: int) -> str:
    """What an exit status says where the process said nothing."""
    if status >= 0:
        return f"exit status {status}"
    return f"killed by signal {-status}" + (", most likely for want of memory" if status == -9 else "")


def tidy(folder: Path) -> None:
    """Leave a run's small artifacts, and let go of weights and states."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in _KEPT:
            path.unlink(missing_ok=True)


def measure_gemm(threads: int) -> float | None:
    """The machine's rate of matrix products just now, in FLOP/s; None where it can't be had."""
    try:
        done = subprocess.run(
            [*module_command("edgetune.bench.gemm"), str(threads)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def _curve(lines: Sequence[dict[str, Any]]) -> list[CurvePoint]:
    return [
        CurvePoint(step=line["step"], accuracy=line["val_accuracy"], train_s=line["train_s"], train_j=line["train_j"])
        for line in lines
        if line["kind"] == "accuracy"
    ]


def _spans(lines: Sequence[dict[str, Any]], epochs_s: Sequence[float]) -> list[tuple[float, float]]:
    """When each epoch began and ended; right where nothing but training happened in between."""
    last = {line["epoch"]: line.get("clock_s") for line in lines if line["kind"] == "step"}
    ends = [last.get(epoch) for epoch in range(len(epochs_s))]
    return [] if None in ends else [(end - spent, end) for end, spent in zip(ends, epochs_s, strict=True) if end]
