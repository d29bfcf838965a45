"""The governor's ladder: every rung needs less than the one before, and none more than the plan allows."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from edgetune.train.knobs import ladder, most_tokens


@pytest.mark.parametrize("method", ["edgetune", "full", "last-2", "head", "lora", "alast", "random-k"])
def test_rungs_descend_from_the_plan(method: str, plan_for: Any) -> None:
    plan = plan_for(method=method)
    rungs = ladder(plan)
    first = rungs[0]
    assert (first.micro_batch_size, first.token_share, first.k) == (plan.micro_batch_size, 1.0, plan.k)
    assert plan.predicted.peak_memory_bytes <= first.peak_bytes < (plan.predicted.peak_memory_most_bytes or 0)
    for before, after in itertools.pairwise(rungs):
        assert after.micro_batch_size <= before.micro_batch_size
        assert after.token_share <= before.token_share
        assert after.k <= before.k
        assert after.difference(before)
        assert after.peak_bytes <= before.peak_bytes or after.micro_batch_size < before.micro_batch_size
    assert rungs[-1].micro_batch_size == 1


def test_tokens_go_where_the_method_drops_them(plan_for: Any) -> None:
    plan = plan_for(method="edgetune", levers=["trained_blocks=6", "saved_precision=fp32"])
    assert ladder(plan)[-1].token_share == 0.5
    plan = plan_for(method="edgetune", levers=["trained_blocks=4"])
    patches = plan.blocks[0].keep_max_tokens
    assert most_tokens(plan, 0.5) == [patches] * plan.lowest_trainable_block + [patches // 2] * 4
    assert {rung.token_share for rung in ladder(plan_for(method="full"))} == {1.0}
