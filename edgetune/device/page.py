"""A board of the catalogue, as a page for a person."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from edgetune.device.catalogue import BoardEntry
from edgetune.units import format_rate, format_size


def print_entry(entry: BoardEntry) -> None:
    """Print how a board is recognised, where its power comes from, its nominal speed, and what to beware of."""
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    modules = ", ".join(f"{part} {module.name}" for part, module in entry.modules.items())
    for label, text in (
        ("family", entry.family),
        ("modules", modules),
        ("chip", ", ".join(entry.recognise.soc)),
        ("memory", _memory(entry)),
        ("speed", _speed(entry)),
        ("power", _power(entry)),
        ("modes", ", ".join(f"{mode.id} {mode.name}" for mode in entry.modes)),
    ):
        if text:
            table.add_row(label, text)
    console.print(entry.name, style="bold", markup=False)
    console.print(table)
    for heading, sentences in (("beware", entry.traps), ("sources", entry.sources)):
        if sentences:
            console.print(f"\n{heading}", style="bold")
        for sentence in sentences:
            console.print(f"- {sentence}", markup=False)


def _memory(entry: BoardEntry) -> str:
    if not entry.visible_mib:
        return ""
    low, high = (format_size(size * 2**20) for size in entry.visible_mib)
    shared = ", shared by CPU and GPU" if entry.unified_memory else ""
    return f"{low} to {high} visible{shared}" if low != high else f"{low} visible{shared}"


def _speed(entry: BoardEntry) -> str:
    nominal = entry.nominal
    parts = [nominal.cpu or ""]
    if nominal.fp32_flops:
        parts.append(f"{format_rate(nominal.fp32_flops, 'FLOP')} fp32 nominal")
    if nominal.memory_bytes_per_s:
        parts.append(f"{format_rate(nominal.memory_bytes_per_s, 'B')} nominal")
    return ", ".join(part for part in parts if part)


def _power(entry: BoardEntry) -> str:
    power = entry.power
    totals = " or ".join(f"{' + '.join(rule.rails)} ({rule.scope})" for rule in power.totals)
    models = ", ".join(model.name for model in power.models)
    if power.sensor != "none":
        return f"{power.sensor}: {totals}" if totals else power.sensor
    return f"no sensor; modelled by {models}" if models else power.no_sensor or "no sensor"
