"""The heat maps of a run: what each block kept, was allowed to keep, and whether it trained."""

from __future__ import annotations

from collections.abc import Callable

from edgetune.report.charts import Heat, Values, figures, known, rounded
from edgetune.report.metrics import Bin, Tally
from edgetune.report.run import Run


def heats(run: Run) -> list[Heat]:
    """Tokens, budgets and trained blocks over the run, as far as they were recorded."""
    alast, patches = run.plan.alast, run.patches
    tokens = _heat_rows(run, lambda bin: bin.tokens)
    budgets = _heat_rows(run, lambda bin: bin.budgets)
    trained = _heat_rows(run, lambda bin: bin.trained)
    found: list[Heat] = []
    if tokens:
        found.append(
            _heat(
                run,
                tokens,
                id="tokens",
                title="Tokens kept",
                unit="tokens",
                low=0.0,
                high=float(patches or 0),
                caption="Patch tokens that leave each block, mean over the batch.",
            )
        )
    if budgets:
        found.append(
            _heat(
                run,
                budgets,
                id="budgets",
                title="Budgets",
                unit="",
                low=alast.budget_min if alast else 0.0,
                high=alast.budget_max if alast else 1.0,
                caption="Share of its incoming patch tokens each block may let through.",
            )
        )
    if trained:
        found.append(
            _heat(
                run,
                trained,
                id="trained",
                title="Blocks that trained",
                unit="of the steps",
                low=0.0,
                high=1.0,
                caption="Share of the steps in which each block's weights were updated.",
            )
        )
    return found


def _heat(
    run: Run, rows: list[Values], *, id: str, title: str, unit: str, low: float, high: float, caption: str
) -> Heat:
    recorded = [value for row in rows for value in known(row)]
    low, high = min(low, *recorded), max(high, *recorded)
    bins = run.metrics.coarse
    edges = [float(bin.first_step) - 0.5 for bin in bins] + [float(bins[-1].last_step) + 0.5]
    least, most = min(recorded), max(recorded)
    span = (
        f" Here {figures(least)} throughout." if least == most else f" Here from {figures(least)} to {figures(most)}."
    )
    return Heat(
        id=id,
        title=title,
        caption=caption + span,
        unit=unit,
        edges=edges,
        rows=rows,
        low=low,
        high=high if high > low else low + 1.0,
    )


def _heat_rows(run: Run, pick: Callable[[Bin], list[Tally]]) -> list[Values]:
    """One row per block, one value per column of steps; empty when nothing was recorded."""
    depth = len(run.plan.blocks)
    columns = [[rounded(tally.mean) for tally in pick(bin)] for bin in run.metrics.coarse]
    if not any(known(column) for column in columns):
        return []
    return [[column[block] if block < len(column) else None for column in columns] for block in range(depth)]
