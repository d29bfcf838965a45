"""What each block was allowed and what it did: heat maps over the run and one row per block."""

from __future__ import annotations

from edgetune.report.charts import figure
from edgetune.report.heats import heats
from edgetune.report.markup import Html, element, join, note, percent, section, table
from edgetune.report.run import Run
from edgetune.schema import BlockPlan


def blocks_over_time(run: Run) -> Html:
    """Tokens, budgets and training of every block."""
    plan, maps = run.plan, heats(run)
    trainable = sum(block.trainable for block in plan.blocks)
    intro = (
        f"{plan.model} has {len(plan.blocks)} blocks; block 0 is next to the image. The plan lets {trainable} of them"
        f" train, {plan.k} at a step, none below block {plan.lowest_trainable_block}; the embeddings"
        f" {'train' if plan.embeddings_trainable else 'stay as they are'}."
    )
    missing = None if maps else note("Neither tokens nor budgets nor trained blocks were recorded.")
    return section(
        "Blocks over time",
        element("p", intro),
        element("div", join(figure(heat) for heat in maps), class_="grid three"),
        missing,
        _per_block(run),
        id="blocks",
    )


def _per_block(run: Run) -> Html:
    patches = run.patches
    rows = [
        [
            str(block.index),
            "yes" if block.trainable else "no",
            _trained_share(run, block.index),
            _band(block),
            _kept(_mean_keep(run, block.index, patches), patches),
        ]
        for block in run.plan.blocks
    ]
    written = table(["block", "may train", "trained", "tokens planned", "tokens kept"], rows)
    of_image = f", of {patches} in an image" if patches else ""
    about = note(
        f"Trained: share of the recorded steps. Tokens: patch tokens that leave the block{of_image}, the plan's least"
        " and most and the mean of the run; class, distillation and register tokens are never dropped and not counted."
    )
    return join([element("h3", "Block by block"), written, about])


def _band(block: BlockPlan) -> str:
    if block.keep_min_tokens == block.keep_max_tokens:
        return f"{block.keep_max_tokens}"
    return f"{block.keep_min_tokens} to {block.keep_max_tokens}"


def _mean_keep(run: Run, block: int, patches: int | None) -> float | None:
    """Share of the image's patch tokens that left a block: as the result says, or from the steps recorded so far."""
    if run.result is not None:
        return run.result.work.mean_keep[block] if block < len(run.result.work.mean_keep) else None
    tallies = [bin.tokens[block] for bin in run.metrics.coarse if block < len(bin.tokens)]
    steps = sum(tally.count for tally in tallies)
    return sum(tally.total for tally in tallies) / steps / patches if steps and patches else None


def _kept(share: float | None, patches: int | None) -> str:
    if share is None:
        return "—"
    return percent(share, 0) if patches is None else f"{share * patches:.1f} ({percent(share, 0)})"


def _trained_share(run: Run, block: int) -> str:
    tallies = [bin.trained[block] for bin in run.metrics.coarse if block < len(bin.trained)]
    steps = sum(tally.count for tally in tallies)
    return "—" if not steps else percent(sum(tally.total for tally in tallies) / steps, 0)
