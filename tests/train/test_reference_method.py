"""Method `alast` as `fit` runs it (plan, engine, update loop), held to the naive re-statement of the reference."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from edgetune.data.loader import Batch
from edgetune.model.registry import find_spec
from edgetune.train.torch_engine import TorchEngine
from tests.alast.conftest import batches, build
from tests.alast.test_reference import Naive

SIZES = (6, 6, 6, 6, 2)


def test_the_engines_steps_are_the_re_statements(plan_for: Any) -> None:
    spec = find_spec("vit_nano_patch8_64").at(32, 3)
    plan = plan_for(method="alast", lr=1e-3, seed=7)
    assert plan.alast is not None
    naive = Naive(build(spec, scale=3.0), plan.alast.initial_budget, 1e-3, k=plan.k, patches=spec.patches)
    engine = TorchEngine(plan, build(spec, scale=3.0))
    dropped = 0
    for step, (images, labels) in enumerate(batches(SIZES, spec)):
        chosen, kept, loss, _ = naive.step(images, labels, random.Random(f"7/{step}"))
        report = engine.train_step(Batch(images.numpy(), labels.numpy()), 1e-3, plan.batch_size)
        assert set(report.trained) == chosen
        assert report.kept == [positions.shape[1] for positions in kept]
        assert report.loss == pytest.approx(loss, rel=1e-4)
        assert report.budgets == pytest.approx(naive.b, abs=1e-5)
        dropped += spec.patches - kept[0].shape[1]
    assert dropped
    start = build(spec, scale=3.0)
    ends = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (engine.model, naive.model, start)]
    # in all, not one by one: Adam divides by a gradient's own size, and that of a key's bias is nothing but rounding
    assert (ends[0] - ends[1]).norm() <= 0.03 * (ends[1] - ends[2]).norm()
