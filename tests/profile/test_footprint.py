"""What a first step brings into memory: measured in a fresh process, and counted by the bill."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from edgetune.model.registry import find_spec
from edgetune.plan.bill import UNMEASURED, FirstUse, memory_bill, most_bytes
from edgetune.plan.job import Job, job_for
from edgetune.plan.methods import find_method
from edgetune.profile.run import _take
from edgetune.schema import Compute

CHILD = """
import json
from edgetune.measure.baseline import warm_up_torch
warm_up_torch(1)
from edgetune.profile.footprint import footprint_lines
for line in footprint_lines():
    print(json.dumps(line))
"""


def test_a_fresh_process_grows_by_the_code_of_its_first_step() -> None:
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, check=True)
    fields: dict[str, dict[str, int]] = {"first_use_bytes": {}}
    for line in done.stdout.splitlines():
        _take(line, fields, {}, [], {})
    found = fields["first_use_bytes"]
    if "lean" in found:  # torch has no product in bf16 here
        assert set(found) == {"lean"}
        return
    assert set(found) == {"lean-bf16-forward", "lean-bf16", "lean-bf16-frozen"}
    # of a block whose own tensors are 5 MiB, made before
    assert 1 << 20 < found["lean-bf16-forward"] <= found["lean-bf16-frozen"] <= found["lean-bf16"] < 128 << 20


def test_a_profile_without_it_counts_the_dearest_that_was_seen() -> None:
    assert FirstUse.of(Compute()) == UNMEASURED
    some = FirstUse.of(Compute(first_use_bytes={"lean": 7 << 20, "lean-bf16": 5 << 20}))
    assert some == UNMEASURED._replace(lean_bytes=7 << 20, bf16_bytes=5 << 20)


def lean_job(trained: int, micro: int = 1, model: str = "vit_nano_patch8_64", **levers: object) -> Job:
    spec = find_spec(model)
    method = find_method("edgetune", spec.depth)
    job = job_for(method, spec, batch_size=4, micro_batch_size=micro, trained=trained, k=trained)
    return msgspec.structs.replace(job, levers=msgspec.structs.replace(job.levers, feature_cache="off", **levers))


@pytest.mark.parametrize(
    ("trained", "levers", "name", "times"),
    [
        (2, {"precision": "bf16", "frozen_precision": "bf16"}, "bf16_bytes", 1.36),
        (6, {"precision": "bf16"}, "bf16_bytes", 1.36),
        (6, {"precision": "bf16", "micro": 2}, "bf16_bytes", 1.36),
        (2, {"precision": "bf16", "model": "vit_base_patch16_224"}, "bf16_bytes", 2.26),  # four times as wide
        (2, {"frozen_precision": "bf16"}, "frozen_bf16_bytes", 1.0),
        (2, {}, "lean_bytes", 1.0),
        (0, {"precision": "bf16"}, "forward_bf16_bytes", 1.3),
    ],
)
def test_the_bill_counts_what_the_profile_measured(
    trained: int, levers: dict[str, Any], name: str, times: float
) -> None:
    job, some = lean_job(trained, **levers), FirstUse(1 << 20, 2 << 20, 3 << 20, 5 << 20)
    more = memory_bill(job, 0, some).total - memory_bill(job, 0, FirstUse(0, 0, 0, 0)).total
    assert more == pytest.approx(times * getattr(some, name), abs=2)


def test_a_bound_does_not_lose_its_margin_where_nothing_was_measured() -> None:
    nothing = FirstUse(8 << 20, 0, 0, 0)
    short = lean_job(2, precision="bf16", frozen_precision="bf16")
    exact = lean_job(2)
    margins = [most_bytes(job, 0, nothing) - memory_bill(job, 0, nothing).total for job in (short, exact)]
    assert margins[0] - margins[1] > 10 << 20
