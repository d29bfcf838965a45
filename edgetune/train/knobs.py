"""What the governor may turn while a run is under way: the plan's own knobs, from as planned to as tight as they go.

First parts of a batch become smaller, which costs time and nothing learned; then fewer tokens stay; then fewer blocks
train at a time. A rung that would not lower the predicted peak is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from edgetune.plan.bill import memory_bill
from edgetune.plan.job import Job, job_of
from edgetune.schema import Plan

_TOKEN_SHARES = (0.85, 0.7, 0.5)  # of the most that the plan lets leave a block


class Knobs(NamedTuple):
    """One rung."""

    micro_batch_size: int
    token_share: float  # of the plan's band, upper end
    k: int
    peak_bytes: int  # the bill at the most tokens, the bare process included

    def difference(self, other: Knobs) -> str:
        """What is different from another rung, in words."""
        changed = []
        if self.micro_batch_size != other.micro_batch_size:
            changed.append(f"micro-batch is now {self.micro_batch_size}")
        if self.token_share != other.token_share:
            changed.append(f"at most {self.token_share:.0%} of the planned tokens stay")
        if self.k != other.k:
            changed.append(f"{self.k} blocks train at a time")
        return " and ".join(changed)


def ladder(plan: Plan) -> list[Knobs]:
    """The rungs, from the plan's own to the tightest; each needs less memory than the one before."""
    job = job_of(plan)
    runtime = plan.predicted.memory.runtime
    settings = [(plan.micro_batch_size, 1.0, plan.k)]
    while settings[-1][0] > 1:
        settings.append((settings[-1][0] // 2, 1.0, plan.k))
    smallest = settings[-1][0]
    if plan.alast is not None and plan.alast.mode == "constrained":
        settings += [(smallest, share, plan.k) for share in _TOKEN_SHARES]
        k = plan.k
        while k > 1:
            k //= 2
            settings.append((smallest, _TOKEN_SHARES[-1], k))
    rungs: list[Knobs] = []
    for micro, share, k in settings:
        peak = memory_bill(_tightened(job, plan, micro, share, k), runtime).total
        # parts of a batch are tried in any case: memory that ran out says that the prediction was wrong
        if not rungs or share == 1.0 or peak < rungs[-1].peak_bytes:
            rungs.append(Knobs(micro, share, k, peak))
    return rungs


def most_tokens(plan: Plan, token_share: float) -> list[int]:
    """Per block, the most patch tokens that may leave it; below the trained part all of them stay."""
    return [
        block.keep_max_tokens
        if block.index < plan.lowest_trainable_block
        else max(1, int(token_share * block.keep_max_tokens))
        for block in plan.blocks
    ]


def _tightened(job: Job, plan: Plan, micro_batch_size: int, token_share: float, k: int) -> Job:
    most = tuple(most_tokens(plan, token_share))
    fewest = tuple(min(low, high) for low, high in zip(job.keep_min, most, strict=True))
    return msgspec.structs.replace(job, micro_batch_size=micro_batch_size, keep_max=most, keep_min=fewest, k=k)
