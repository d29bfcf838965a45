"""Runs that are planned to end within an epoch: the plan's arithmetic and the run's agree."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgetune import schema
from edgetune.errors import InfeasibleError
from edgetune.model.registry import find_spec
from edgetune.plan import make_plan
from edgetune.plan.bill import state_bytes
from edgetune.plan.cache import stretch_batches
from edgetune.plan.cost import Cost, time_of
from edgetune.plan.job import job_of
from edgetune.plan.rates import Rates
from edgetune.report import write_report
from edgetune.schema import Plan
from edgetune.train.budget import Budget
from edgetune.train.governor import Governor, Spent
from tests.plan.conftest import make_profile


def partly(stage: Any, steps: int, **options: Any) -> Any:
    """A run whose plan has room for so many of its first epoch's steps."""
    made = stage(epochs=5, **options)
    assert steps < made.plan.steps_per_epoch
    made.plan = msgspec.structs.replace(made.plan, epochs=1, total_steps=steps)
    return made


def test_it_ends_where_the_plan_does_though_nothing_caps_it_any_more(stage: Any) -> None:
    """It may have been planned under a battery's charge, and run on mains."""
    made = partly(stage, 2)
    loop = made.loop()
    assert loop.run() == "epochs"
    assert loop.progress.step == 2
    assert loop.progress.evaluated_step == 2
    assert (made.out / "best.safetensors").exists()


def test_what_it_took_is_what_its_calibration_says(stage: Any) -> None:
    made = partly(stage, 2, time_s=7.0)
    started = made.clock.now
    loop = made.loop()
    loop.run()
    calibrated = schema.load(made.out / "plan.json", Plan).calibrated
    assert calibrated is not None
    assert calibrated.after_steps == loop.progress.step > 0
    assert calibrated.total_s == pytest.approx(made.clock.now - started)


class NoMemory:
    """A meter that has seen nothing."""

    def take_recent_peak_bytes(self) -> int:
        return 0


def steps_at_the_predicted_pace(plan: Plan, cost: Cost) -> int:
    """What the run's own reckoning does under the plan's caps, where everything takes what the plan foresaw."""
    now_s = cost.start_s
    spec = find_spec(plan.model).at(plan.image_size, len(plan.data.classes))
    budget = Budget(
        plan,
        Governor(plan.caps, NoMemory()),  # type: ignore[arg-type]
        plan.data.val_images,
        4 * spec.parameter_count,
        state_bytes(job_of(plan)),
        lambda: Spent(now_s, None, None),
    )
    step, image_s = 0, cost.view_s / plan.data.train_images
    stretch = stretch_batches(job_of(plan), plan.steps_per_epoch)
    while budget.ended_by(step) is None:
        if image_s and step < plan.steps_per_epoch and step % stretch == 0:
            now_s += image_s * stretch * plan.batch_size
            budget.note_preparing(image_s)
            budget.note_prepared(0, step + stretch)
            if budget.ended_by(step):
                break
        assert step < budget.expected_steps(step) <= plan.wanted_epochs * plan.steps_per_epoch
        took_s = cost.step_s + (0.0 if step else cost.first_step_s)
        now_s, step = now_s + took_s, step + 1
        budget.note_step(took_s)
        if budget.unsampled:
            evaluated_image_s = cost.eval_s / plan.data.val_images
            budget.note_sample(evaluated_image_s)
            now_s += 2 * plan.batch_size * evaluated_image_s
    return step


@pytest.mark.parametrize("share", [None, 0.1, 0.4, 0.9])
@pytest.mark.parametrize(
    ("model", "method"),
    [("vit_nano_patch8_64", "full"), ("deit_tiny_patch16_224", "last-4"), ("deit_tiny_patch16_224", "edgetune")],
)
def test_at_the_predicted_pace_the_planned_steps_are_run(
    share: float | None, model: str, method: str, tmp_path: Path
) -> None:
    for part, count in (("train", 160), ("val", 40)):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.jpg").touch()
    profile = make_profile(gflops=20.0)
    options: dict[str, Any] = {"model": model, "method": method, "profile": profile, "engine": "torch", "batch_size": 8}
    whole = make_plan(tmp_path, **options).predicted
    assert whole.epoch_s is not None
    with pytest.raises(InfeasibleError) as caught:
        make_plan(tmp_path, time_s=0.5, **options)
    cap_s = caught.value.nearest.time_s
    assert cap_s is not None
    plan = make_plan(tmp_path, time_s=cap_s + (share or 0.0) * whole.epoch_s, **options)
    if share is None:
        assert plan.total_steps == 4  # a tenth of forty
    assert plan.total_steps < plan.steps_per_epoch + 4
    cost = time_of(job_of(plan), 320, 80, Rates(profile.compute))
    assert cost is not None
    assert plan.total_steps <= steps_at_the_predicted_pace(plan, cost) <= plan.total_steps + 6


def test_its_report_says_what_a_step_took_and_nothing_of_an_epoch(stage: Any) -> None:
    made = partly(stage, 2)
    made.loop().run()
    page = html.unescape(write_report(made.out).read_text())
    assert f"2 of an epoch's {made.plan.steps_per_epoch} steps planned" in page
    assert '<th scope="row">One step</th><td class="n">—</td><td class="n">1 s</td>' in page
    assert '<th scope="row">One epoch</th><td class="n">—</td><td class="n">—</td>' in page
