"""How a run ended, in a few lines for a person."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from edgetune.schema import Result
from edgetune.units import format_duration, format_energy, format_size

_ENDINGS = {
    "epochs": "all planned epochs ran",
    "patience": "ended early: no gain for as many epochs as --patience allows",
    "memory": "ended by the memory cap",
    "energy": "ended by the energy cap",
    "time": "ended by the time cap",
    "user": "interrupted",
    "nan": "ended because the loss was no longer a number",
}


def print_result(result: Result, out: Path) -> None:
    """Print accuracy, memory, time and energy of a run, its warnings, and what to do next."""
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    accuracy, memory, time, energy = result.accuracy, result.memory, result.time, result.energy
    if accuracy.best is not None and accuracy.best_epoch is not None:
        table.add_row(
            "accuracy", f"{accuracy.best:.1%} best (epoch {accuracy.best_epoch + 1}), {accuracy.last:.1%} last"
        )
    cap = f" of {format_size(memory.cap_bytes)} allowed" if memory.cap_bytes else ""
    table.add_row(
        "peak memory",
        f"{format_size(memory.measured_peak_bytes)}{cap}, {format_size(memory.predicted_peak_bytes)} predicted,"
        f" {format_size(memory.baseline_bytes)} before the model",
    )
    if memory.device_peak_bytes is not None:
        table.add_row("accelerator", format_size(memory.device_peak_bytes))
    epochs = ", ".join(format_duration(seconds) for seconds in time.epochs_s[:6])
    more = ", …" if len(time.epochs_s) > 6 else ""
    table.add_row("time", format_duration(time.total_s) + (f" (epochs {epochs}{more})" if epochs else ""))
    if energy.total_j is None:
        table.add_row("energy", "unknown: no sensor here; --power W gives a modelled figure")
    else:
        marked = (
            f"measured by {energy.source}, {energy.scope}"
            if energy.measured
            else f"modelled: {energy.model or energy.source}"
        )
        table.add_row("energy", f"{format_energy(energy.total_j)} ({marked})")
    console.print(f"{out}: {_ENDINGS[result.stopped_by]}", markup=False, soft_wrap=True)
    console.print(table)
    for warning in result.warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    console.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)
    if result.stopped_by == "user":
        console.print(f"go on with: edgetune fit --resume --out {out}", markup=False, soft_wrap=True)
