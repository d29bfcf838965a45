"""A plan as a page for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgetune.schema import Plan, StepPart
from edgetune.units import format_duration, format_energy, format_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


_BAR = 5  # cells of the longest bar of learning


def print_plan(plan: Plan, console: Console | None = None, *, costs: bool = False) -> None:
    """The plan as a page for a terminal of 80 columns or more; `costs`: with what a step takes, block by block."""
    from rich.console import Console as RichConsole
    from rich.table import Table as RichTable
    from rich.text import Text

    console = console or RichConsole(highlight=False)
    predicted, bill, caps = plan.predicted, plan.predicted.memory, plan.caps
    console.print()
    console.print(
        Text.assemble(
            ("Plan  ", "bold"), f"{plan.method} · {plan.model} · {plan.image_size} px · {plan.engine} on {plan.device}"
        )
    )
    facts = plan.data
    data = f"{len(facts.classes)} classes, {facts.train_images} training and {facts.val_images} validation images"
    console.print(Text(f"      {data}", style="dim"))
    console.print()

    table = RichTable(box=None, pad_edge=False, show_header=True, header_style="dim")
    table.add_column("", style="bold", no_wrap=True)
    for heading in ("predicted", "at most", "cap"):
        table.add_column(heading, justify="right")
    most_bytes, factor = predicted.peak_memory_most_bytes, predicted.time_factor
    figures: tuple[tuple[str, Callable[[Any], str], float | None, float | None], ...] = (
        ("time", format_duration, predicted.total_s, caps.time_s),
        ("energy", format_energy, predicted.total_energy_j, caps.energy_j),
        ("per epoch", format_duration, predicted.epoch_s, None),
    )
    table.add_row(
        "peak memory", format_size(predicted.peak_memory_bytes), format_size(most_bytes), format_size(caps.memory_bytes)
    )
    for name, written, value, cap in figures:
        most = None if value is None or factor is None else value * factor
        table.add_row(name, written(value), written(most), "" if name == "per epoch" else written(cap))
    table.add_row("per image", f"{predicted.train_flops_per_image / 1e9:.3g} GFLOP", "", "")
    console.print(table)
    console.print()

    bars = RichTable(box=None, pad_edge=False, show_header=False)
    bars.add_column(no_wrap=True, style="dim")
    bars.add_column(justify="right", no_wrap=True)
    bars.add_column(no_wrap=True)
    width = 30
    for name in bill.__struct_fields__:
        value = getattr(bill, name)
        share = value / bill.total
        bars.add_row(name, format_size(value), Text("█" * round(width * share), style="cyan"))
    console.print(Text("Where the memory goes", style="bold"))
    console.print(bars)
    console.print()

    if costs:
        console.print(Text("What a step takes", style="bold"), Text("predicted, block by block", style="dim"))
        if predicted.step_parts:
            console.print(_step_table(predicted.step_parts))
        else:
            console.print("nothing was timed: plan with the --profile that `edgetune profile --out FILE` writes")
        console.print()
    console.print(Text("Blocks", style="bold"), Text(_blocks_line(plan)))
    console.print(
        Text(
            f"        ■ may train, {plan.k} at a time; batch {plan.batch_size}"
            f" in parts of {plan.micro_batch_size}; {plan.total_steps} steps"
            + (f" of an epoch's {plan.steps_per_epoch}" if plan.total_steps < plan.steps_per_epoch else ""),
            style="dim",
        )
    )
    console.print()
    if len(plan.alternatives) > 1:
        console.print(
            Text("Trade-off", style="bold"),
            Text("predicted; learning is modelled, 1 is this plan (→); × is beyond a cap", style="dim"),
        )
        console.print(_alternatives(plan))
        console.print()
    console.print(Text("Why", style="bold"))
    sentences = RichTable(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
    sentences.add_column(no_wrap=True)
    sentences.add_column(overflow="fold")
    for sentence in plan.why:
        sentences.add_row("•", Text(sentence))
    for warning in plan.warnings:
        sentences.add_row("!", Text(warning, style="yellow"))
    console.print(sentences)
    console.print()


def _step_table(parts: Sequence[StepPart]) -> Table:
    from rich.table import Table as RichTable

    joules = any(part.energy_j is not None for part in parts)
    table = RichTable(box=None, pad_edge=False, header_style="dim")
    names = ("", "forward", "gradient on", "weights", "kept", *(("energy",) if joules else ()))
    for name in names:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    total = StepPart(
        name="a step",
        forward_s=sum(part.forward_s for part in parts),
        pass_gradient_s=sum(part.pass_gradient_s for part in parts),
        weight_gradient_s=sum(part.weight_gradient_s for part in parts),
        saved_bytes=sum(part.saved_bytes for part in parts),
        energy_j=sum(part.energy_j or 0.0 for part in parts) if joules else None,
    )
    for part in (*parts, total):
        figures = (part.forward_s, part.pass_gradient_s, part.weight_gradient_s)
        row = [part.name, *(f"{1000 * figure:.3g} ms" if figure else "" for figure in figures)]
        row.append(format_size(part.saved_bytes) if part.saved_bytes else "")
        row += [format_energy(part.energy_j)] if joules else []
        table.add_row(*row, style="bold" if part is total else None)
    return table


def _alternatives(plan: Plan) -> Table:
    from rich.table import Table as RichTable

    table = RichTable(box=None, pad_edge=False, header_style="dim")
    for name in ("", "blocks", "tokens", "kept", "parts", "peak", "time", "energy", "learning"):
        table.add_column(name, justify="left" if name in ("", "kept", "learning") else "right", no_wrap=True)
    most = max(found.learning for found in plan.alternatives)
    for found in plan.alternatives:
        part = f" {found.recomputed_blocks}" if found.recomputed_blocks < found.trained_blocks else ""
        kept = found.saved_precision + (f"{part} again" if found.recomputed_blocks else "")
        table.add_row(
            "→" if found.chosen else "" if found.within_caps else "×",
            f"{found.trained_blocks}" + (f", {found.k}" if found.k < found.trained_blocks else ""),
            f"{found.token_share:.0%}",
            kept if found.trained_blocks else "",
            str(found.micro_batch_size),
            format_size(found.peak_memory_bytes),
            format_duration(found.total_s),
            format_energy(found.total_energy_j),
            f"{found.learning:.2f} " + "█" * round(_BAR * found.learning / most),
            style="bold" if found.chosen else None if found.within_caps else "dim",
        )
    return table


def _blocks_line(plan: Plan) -> str:
    return "".join("■" if block.trainable else "·" for block in plan.blocks)
