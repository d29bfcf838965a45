"""The profile as a page: limits, what was measured, what was not, what to change. Reads well at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgetune.device.memory import usable_bytes
from edgetune.schema import BlockCost, Profile, TensorCost
from edgetune.units import format_power, format_rate, format_size

if TYPE_CHECKING:
    from rich.console import Console

Row = tuple[str, str, str]


def print_profile(profile: Profile, console: Console | None = None) -> None:
    """Print the page."""
    from rich.console import Console as RichConsole
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = console or RichConsole(highlight=False)

    def section(title: str, rows: list[Row]) -> None:
        console.print(Text(title, style="bold"))
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True, min_width=16)
        table.add_column(no_wrap=True)
        table.add_column(style="dim", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(Padding(table, (0, 0, 1, 2)))

    def notes(title: str, sentences: list[str], style: str) -> None:
        if not sentences:
            return
        console.print(Text(title, style="bold"))
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
        table.add_column(style=style, no_wrap=True)
        table.add_column(overflow="fold")
        for sentence in sentences:
            table.add_row("•", sentence)
        console.print(Padding(table, (0, 0, 1, 2)))

    console.print()
    console.print(Text(profile.board.name, style="bold cyan"))
    facts = (profile.board.module, profile.board.soc, profile.board.jetpack, profile.board.os, profile.board.arch)
    console.print(Text(" · ".join(fact for fact in facts if fact), style="dim"))
    console.print()
    section("Limits", limit_rows(profile))
    section("Measured", measured_rows(profile) or [("nothing", "", "")])
    notes("Not known", missing(profile), "yellow")
    notes("To change", profile.advice, "green")
    notes("Warnings", profile.warnings, "yellow")


def limit_rows(profile: Profile) -> list[Row]:
    """What bounds a run: (name, figure, remark)."""
    memory, modes = profile.memory, profile.modes
    enforced = {True: "enforced", False: "not enforced by this kernel", None: "whether it is enforced is not known"}
    rows = [
        ("memory", format_size(memory.total_bytes), "shared with the GPU" if memory.unified else ""),
        ("free now", format_size(usable_bytes(memory)), "what a run may use, at most"),
    ]
    if memory.limit_bytes is not None:
        rows.append(
            (
                "group limit",
                format_size(memory.limit_bytes),
                f"{enforced[memory.limit_enforced]}; {memory.limit_source}",
            )
        )
    if memory.swap_bytes:
        zram = f", {format_size(memory.zram_bytes)} of it zram" if memory.zram_bytes else ""
        rows.append(("swap", format_size(memory.swap_bytes), f"not counted as memory{zram}"))
    if memory.cuda_total_bytes is not None:
        rows.append(("GPU memory", format_size(memory.cuda_total_bytes), f"{format_size(memory.cuda_free_bytes)} free"))
    if modes.current:
        others = [name for name in modes.available if name != modes.current]
        rows.append(("power mode", modes.current, f"others: {', '.join(others)}" if others else ""))
    if modes.cpu_hz:
        governor = f"governor {modes.governor}" if modes.governor else ""
        rows.append(("processor", f"{max(modes.cpu_hz) / 1e9:.2f} GHz", governor))
    if profile.compute.cores:
        rows.append(("cores", str(profile.compute.cores), ""))
    return rows


def measured_rows(profile: Profile) -> list[Row]:
    """What was measured: (name, figure, remark)."""
    power, compute = profile.power, profile.compute
    rows: list[Row] = []
    if power.source is not None:
        kind = "measured" if power.measured else f"modelled by {power.model or power.source}"
        rows.append(("power now", format_power(power.total_w), f"{power.scope}, {kind}, from {power.source}"))
        if power.interval_s is not None:
            rows.append(
                ("sensor window", f"{power.interval_s:.3g} s", "the sensor averages over it; shorter is unseen")
            )
        if power.total_corrected_w is not None:
            rows.append(("corrected", format_power(power.total_corrected_w), f"by {power.model}"))
        if power.idle_w is not None:
            rows.append(("idle", format_power(power.idle_w), "before the probes"))
        rows += [(f"  {name}", format_power(watts), "") for name, watts in power.rails.items()]
        if power.note:
            rows.append(("about power", "", power.note))
    if compute.runtime_bytes is not None:
        rows.append(("bare process", format_size(compute.runtime_bytes), f"{compute.engine} {compute.engine_version}"))
    where = f"{compute.device}, {compute.threads} threads" if compute.device else ""
    for name, rate in compute.gemm_flops.items():
        if rate is not None:
            rows.append((f"matmul {name}", format_rate(rate, "FLOP"), where))
    if compute.copy_bytes_per_s is not None:
        rows.append(("copying", format_rate(compute.copy_bytes_per_s, "B"), "read and written once each"))
    rows += list(_block_rows(compute.block_costs))
    rows += list(_tensor_rows(compute.tensor_costs))
    return rows


def _block_rows(costs: list[BlockCost]) -> Iterator[Row]:
    """One row a shape: milliseconds an image of the three parts, and what they keep."""
    shapes: dict[tuple[int, int, int, str], dict[str, BlockCost]] = {}
    for cost in costs:
        shapes.setdefault((cost.width, cost.tokens, cost.batch_size, cost.lever), {})[cost.part] = cost
    for (width, tokens, batch, lever), parts in sorted(shapes.items()):
        each = [parts.get(part) for part in ("forward", "pass_gradient", "weight_gradient")]
        times = " + ".join("?" if cost is None else f"{1e3 * cost.seconds / cost.batch_size:.3g}" for cost in each)
        kept = sum((cost.saved_bytes or 0) / cost.batch_size for cost in each if cost is not None)
        name = f"block {width}×{tokens}"
        yield name, f"{times} ms", f"an image of {batch}; keeps {format_size(kept)}; {lever}"


def _tensor_rows(costs: list[TensorCost]) -> Iterator[Row]:
    """One row a thing done with tensors: nanoseconds a number, of the most numbers that were tried."""
    largest: dict[str, TensorCost] = {}
    for cost in sorted(costs, key=lambda cost: cost.numbers):
        largest[f"{cost.operation} {cost.lever}"] = cost
    for name, cost in sorted(largest.items()):
        yield name, f"{1e9 * cost.seconds / cost.numbers:.3g} ns", f"a number of {cost.numbers:,}"


def missing(profile: Profile) -> list[str]:
    """What this profile does not know, and what that means."""
    power, compute = profile.power, profile.compute
    found = []
    if power.source is None or power.total_w is None:
        why = power.note if power.source is None else None
        found.append(f"Power: {why or 'no sensor answered.'} Joules can be modelled with --power W, and are marked so.")
    elif not power.measured:
        found.append("Power is modelled, not measured: joules follow the model.")
    if usable_bytes(profile.memory) is None:
        found.append("Memory: how much is free could not be read; give --memory to plan and fit.")
    if compute.probe_error:
        found.append(f"Speed: {compute.probe_error}.")
    elif not compute.block_costs:
        found.append("Speed: no transformer block was timed; times are rough.")
    slow = [
        name
        for name, rate in compute.gemm_flops.items()
        if rate is not None and name != "fp32" and rate < 0.5 * (compute.gemm_flops.get("fp32") or 0)
    ]
    if slow:
        found.append(f"{' and '.join(slow)}: slower than fp32 here, so plans don't use it.")
    return found
