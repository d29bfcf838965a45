"""Caps on time and energy, with a scripted engine: kept with an evaluated checkpoint, used up, and resumed under."""

from __future__ import annotations

import shutil
from typing import Any

import msgspec
import pytest

from edgetune import schema
from edgetune.device.energy import EnergyMeter
from edgetune.device.power.constant import UserConstant
from edgetune.model.registry import find_spec
from edgetune.plan.bill import state_bytes
from edgetune.plan.job import job_of
from edgetune.schema import FeatureCachePlan, Plan
from edgetune.train.governor import Squeeze
from edgetune.train.progress import Pace
from edgetune.train.scarcity import OutOfMemoryError


def test_a_time_cap_is_kept_with_evaluation_inside(stage: Any) -> None:
    made = stage(time_s=16.0)
    loop = made.loop()
    started = made.clock.now
    assert loop.run() == "time"
    assert made.clock.now - started <= 16.0
    assert loop.progress.evaluations
    assert (made.out / "best.safetensors").exists()


def test_the_schedule_ends_where_the_cap_does(stage: Any) -> None:
    """Forty epochs were wanted, a tenth of them fits: the rate comes down to nothing within that tenth."""
    made = stage(epochs=40, time_s=24.0)
    loop = made.loop()
    assert loop.run() == "time"
    rates = made.engine.rates
    assert len(rates) < 20
    assert max(rates) > 0.8 * made.plan.recipe.learning_rate
    assert rates[-1] < 0.2 * made.plan.recipe.learning_rate
    falling = rates[rates.index(max(rates)) :]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("cap", ["time_s", "energy_j"])
def test_a_run_that_is_faster_than_planned_goes_on_until_the_cap(cap: str, stage: Any) -> None:
    made = stage(power_w=1.0, epochs=40, expected_epochs=2, **{cap: 60.0})
    started = made.clock.now
    with made.energy:
        loop = made.loop()
        assert loop.run() == cap.split("_")[0]
    assert loop.progress.step > made.plan.total_steps
    assert 0.9 * 60 <= made.clock.now - started <= 60


def test_without_a_cap_the_plan_is_all_there_is(stage: Any) -> None:
    made = stage(epochs=40, expected_epochs=2)
    loop = made.loop()
    assert loop.run() == "epochs"
    assert loop.progress.step == made.plan.total_steps


def test_a_sample_of_the_first_evaluation_leaves_a_cap_more_room_for_training(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, twelve images to evaluate are expected to take as long as training on them: two seconds."""
    steps = []
    for batches in (8, 1):  # of an evaluation that is worth a sample; this one has two
        monkeypatch.setattr("edgetune.plan.cost.SAMPLED_BATCHES", batches)
        made = stage(epochs=40, time_s=9.0)
        made.plan = msgspec.structs.replace(made.plan, feature_cache=None)
        made.engine.evaluated_image_s = 0.02
        loop, started = made.loop(), made.clock.now
        assert loop.run() == "time"
        assert made.clock.now - started <= 9.0
        assert loop.progress.evaluations
        steps.append(loop.progress.step)
        assert (loop.progress.pace.evaluated_image_s == pytest.approx(0.02)) is (batches == 1)
        made.out.rename(made.out.with_name(f"run-{batches}"))
    assert steps[1] > steps[0]


def test_nothing_is_sampled_where_nothing_is_capped(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.plan.cost.SAMPLED_BATCHES", 1)
    made = stage(epochs=2)
    made.plan = msgspec.structs.replace(made.plan, feature_cache=None)
    loop = made.loop()
    assert loop.run() == "epochs"
    assert loop.progress.pace.evaluated_image_s is None


def test_a_sample_that_memory_runs_out_over_leaves_the_pace_of_training(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune.plan.cost.SAMPLED_BATCHES", 1)
    made = stage(epochs=40, time_s=16.0)
    made.plan = msgspec.structs.replace(made.plan, feature_cache=None)
    evaluate = made.engine.evaluate

    def scarce_once(*arguments: Any) -> Any:
        made.engine.evaluate = evaluate
        raise OutOfMemoryError("scripted")

    made.engine.evaluate = scarce_once
    loop = made.loop()
    assert loop.run() == "time"
    assert loop.progress.pace.evaluated_image_s == pytest.approx(1 / 6)
    assert loop.progress.evaluations


def test_an_energy_cap_is_kept(stage: Any) -> None:
    made = stage(power_w=10.0, energy_j=160.0)
    with made.energy:
        loop = made.loop()
        assert loop.run() == "energy"
        joules, _ = loop.spending.joules()
    assert joules is not None
    assert 100.0 <= joules <= 160.0


def test_a_cap_before_the_first_step_still_leaves_a_checkpoint(stage: Any) -> None:
    made = stage(time_s=0.1)
    assert made.loop().run() == "time"
    assert (made.out / "best.safetensors").exists()


def test_a_cap_that_strikes_while_images_are_prepared_leaves_time_for_the_validation_images_too(stage: Any) -> None:
    made = stage(time_s=30.0)
    made.prepare_s = 1.0  # 24 training images, then 12 for validation
    loop = made.loop()
    assert loop.run() == "time"
    assert loop.progress.step == 0
    assert 15.0 < loop.spending.seconds() <= 30.0
    assert (made.out / "best.safetensors").exists()


def test_a_slow_disk_is_inside_a_time_cap(stage: Any) -> None:
    """The best and the last weights are written when a cap has ended a run, at the pace of the slowest so far."""
    made = stage(epochs=40, time_s=70.0)
    made.engine.save_s = 6.0
    loop = made.loop()
    assert loop.run() == "time"
    assert loop.progress.step > 4
    assert 50.0 < loop.spending.seconds() <= 70.0


def test_states_on_a_slow_disk_are_inside_a_time_cap(stage: Any) -> None:
    """The first one, which has no optimizer's part yet, says nothing of the others."""
    for time_s in range(40, 60):
        made = stage(epochs=40, time_s=float(time_s))
        made.engine.save_s = made.engine.state_s = 3.0
        loop = made.loop()
        assert loop.run() == "time"
        assert loop.progress.step > 4
        assert loop.spending.seconds() <= time_s
        shutil.rmtree(made.out)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(("base_bytes", "bytes_per_s"), [(200_000_000, 20e6), (4, 50e6)])
def test_a_model_is_written_as_fast_as_what_never_trains_was(
    base_bytes: int, bytes_per_s: float, before: bool, stage: Any
) -> None:
    """By the run, or before it; a file of a few bytes says nothing of the disk, and a slow one is assumed."""
    made = stage(epochs=1)
    made.engine.base_bytes = base_bytes
    setattr(made.engine, "base_s" if before else "base_takes_s", 10.0)
    loop = made.loop()
    expected: list[float] = []
    made.engine.on_step = lambda step: expected.append(loop.budget.save_s)
    loop.run()
    weights_bytes = 4 * find_spec(made.plan.model).at(made.plan.image_size, len(made.plan.data.classes)).parameter_count
    assert expected[0] == pytest.approx((weights_bytes + state_bytes(job_of(made.plan))) / bytes_per_s)


@pytest.mark.parametrize("time_s", [16.9, 18.0, 19.0, 19.9, 21.0])
def test_accuracies_on_the_way_do_not_break_a_cap(time_s: float, stage: Any) -> None:
    made = stage(epochs=40, evaluate_every=40, evaluate_steps=1, time_s=time_s)
    loop = made.loop()
    assert loop.run() == "time"
    assert made.records("accuracy")
    assert loop.spending.seconds() <= time_s


def test_a_resumed_run_knows_its_pace_from_its_first_step_on(stage: Any) -> None:
    budget = stage(epochs=2, time_s=100.0).loop().budget
    assert not budget.settled
    budget.resume(Pace(step_s=1.0))
    for _ in range(4):
        assert budget.settled
        budget.note_step(1.0)


def test_images_still_to_be_prepared_leave_a_cap_room_for_fewer_steps(stage: Any) -> None:
    made = stage(epochs=40, time_s=100.0)
    cache = FeatureCachePlan(precision="fp16", views=2, tokens=1, train_bytes=1, val_bytes=0)
    made.plan = msgspec.structs.replace(made.plan, feature_cache=cache)
    loop = made.loop()
    steps, images = made.plan.steps_per_epoch, made.plan.batch_size
    budget = loop.budget
    budget.note_step(1.0)
    budget.note_evaluation(0.0)
    budget.note_weights(0.0)
    budget.note_state(0.0)
    cheap = budget.expected_steps(0)
    assert cheap == pytest.approx(97.8)  # two steps and the least for saving are kept back
    budget.note_preparing(2.0 / images)
    assert budget.expected_steps(0) == pytest.approx(cheap - 2 * 2 * steps)
    budget.note_prepared(0, steps)
    assert budget.expected_steps(0) == pytest.approx(cheap - 2 * steps)
    made.clock.now += 97.8 - steps - 3.0  # the first view is trained on, and then there is time for one step
    assert budget.expected_steps(steps) == pytest.approx(steps + 1 + steps / 3)
    budget.note_prepared(1, steps)
    assert budget.expected_steps(steps) == pytest.approx(steps + 3 + steps)


def test_preparing_validation_images_is_expected_once(stage: Any) -> None:
    made = stage(epochs=1000, time_s=1000.0)
    cache = FeatureCachePlan(precision="fp16", views=1, tokens=1, train_bytes=1, val_bytes=1)
    made.plan = msgspec.structs.replace(made.plan, feature_cache=cache)
    budget = made.loop().budget
    budget.note_step(1.0)
    budget.note_prepared(0, made.plan.steps_per_epoch)
    expected = budget.expected_steps(0)
    budget.note_preparing(5.0)  # a minute for twelve
    assert budget.val_once_s == 60.0
    each_s = 1.0 + 12 / made.plan.batch_size / made.plan.steps_per_epoch
    assert budget.expected_steps(0) == pytest.approx(expected - 60.0 / each_s)
    budget.note_evaluation(2.0)
    assert budget.val_once_s == 0.0


def test_what_an_earlier_sitting_prepared_is_not_taken_for_fast_or_slow_images(stage: Any) -> None:
    made = stage(epochs=1)
    loop = made.loop()

    def prepare(epoch: int, stop_batch: int | None = None, micro_batch_size: int = 1) -> Any:
        made.clock.now += 100.0  # a long look at a file
        yield 0
        made.clock.now += 6.0
        yield 12

    loop.train.prepare = prepare
    loop.run()
    assert loop.progress.pace.image_s == 0.5
    assert loop.progress.epochs_s[0] >= 106.0


def test_preparing_more_images_leaves_what_the_end_takes(stage: Any) -> None:
    loop = stage(epochs=40, time_s=100.0).loop()
    loop.budget.note_step(1.0)
    loop.budget.note_evaluation(10.0)
    ending_s = loop.budget._ending_s()
    assert loop.budget.ended_by(1, 99.0 - ending_s) is None
    assert loop.budget.ended_by(1, 101.0 - ending_s) == "time"


@pytest.mark.parametrize("charged", [False, True])
def test_an_epoch_is_prepared_in_stretches_where_a_battery_may_end_it(charged: bool, stage: Any) -> None:
    made = stage(power_w=10.0)
    loop, asked = made.loop(), []
    if charged:
        assert loop.hold_to_charge(1e6)
    stretches = loop.train.stretches

    def noted(epoch: int, start_batch: int = 0, *, whole: bool = False) -> Any:
        asked.append(whole)
        return stretches(epoch, start_batch, whole=whole)

    loop.train.stretches = noted
    loop.run()
    assert set(asked) == {not charged}


def test_a_sample_is_whole_whoever_asks_the_run_to_end(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.plan.cost.SAMPLED_BATCHES", 1)
    made = stage(epochs=40, time_s=100.0)
    made.plan = msgspec.structs.replace(made.plan, feature_cache=None)
    evaluate, asked = made.engine.evaluate, []

    def noted(batches: Any, micro_batch_size: int, stop: Any) -> Any:
        made.interrupted = True
        asked.append(stop())
        return evaluate(batches, micro_batch_size, stop)

    made.engine.evaluate = noted
    assert made.loop().run() == "user"
    assert asked == [False, False]


def test_a_cold_first_step_does_not_end_the_warm_up(stage: Any) -> None:
    """160 steps are planned and some 100 fit; the first takes ten times as long as the others."""
    made = stage(epochs=40, evaluate_every=40, time_s=130.0)
    recipe = msgspec.structs.replace(made.plan.recipe, warmup_steps=16, schedule="cosine")
    made.plan = msgspec.structs.replace(made.plan, recipe=recipe)

    def cold(step: int) -> None:
        made.clock.now += 9.0 if step == 0 else 0.0

    made.engine.on_step = cold
    loop = made.loop()
    assert loop.run() == "time"
    assert loop.progress.step > 80
    rates = [rate / recipe.learning_rate for rate in made.engine.rates]
    assert rates[:6] == sorted(rates[:6])
    assert rates[2] < 0.4
    assert max(rates) > 0.95
    assert 6 <= rates.index(max(rates)) <= 14  # the warm-up of a run of a hundred steps is shorter than that of 160


def test_what_the_start_took_before_the_meter_is_counted_at_the_mean_power(stage: Any) -> None:
    made = stage(power_w=10.0, epochs=40, energy_j=300.0)
    made.started_s = 10.0
    with made.energy:
        loop = made.loop()
        assert loop.run() == "energy"
        joules, _ = loop.spending.joules()
    assert joules is not None
    assert 170.0 <= joules <= 200.0


def test_preparing_validation_images_is_not_held_against_later_evaluations(stage: Any) -> None:
    made = stage(epochs=40, time_s=100.0)
    made.prepare_s = 1.0
    loop = made.loop()
    assert loop.run() == "time"
    assert 95.0 <= loop.spending.seconds() <= 100.0  # 36 of them for the images


def test_an_evaluation_after_its_epoch_belongs_to_that_epoch(stage: Any) -> None:
    """The second epoch ends without one, to leave room for more steps, and then there is no room for a step."""
    made = stage(time_s=14.0)
    loop = made.loop()
    assert loop.run() == "time"
    epochs = made.records("epoch")
    assert [epoch for epoch, _ in loop.progress.evaluations] == [0, len(epochs) - 1]
    assert len(loop.progress.epochs_s) == len(epochs)
    assert epochs[-1]["val_accuracy"] == 0.5
    assert epochs[-1]["val_loss"] == 0.7


def _with_time(plan: Plan, time_s: float | None) -> Plan:
    return msgspec.structs.replace(plan, caps=msgspec.structs.replace(plan.caps, time_s=time_s))


def test_an_epoch_that_a_cap_cut_is_counted_once_when_the_run_goes_on(stage: Any) -> None:
    made = stage(time_s=12.5)
    first = made.loop()
    assert first.run() == "time"
    assert first.progress.cut_short
    made.plan = _with_time(made.plan, None)
    again = made.loop()
    again.resume()
    assert again.run() == "epochs"
    assert again.progress.epochs_s == [4.0] * 5
    assert [record["epoch"] for record in made.records("epoch")] == [0, 1, 2, 3, 4]
    assert [record["step"] for record in made.records("step")] == list(range(1, 21))


def test_resuming_without_room_for_a_step_keeps_the_last_epoch_on_record(stage: Any) -> None:
    made = stage(time_s=12.5)
    assert made.loop().run() == "time"
    before = made.records("epoch")
    again = made.loop()
    again.resume()
    assert again.run() == "time"
    assert made.records("epoch") == before


def test_a_battery_s_charge_bounds_this_sitting_and_stays_out_of_the_plan(stage: Any) -> None:
    made = stage(power_w=10.0, epochs=40, evaluate_every=10)
    with made.energy:
        first = made.loop()
        assert first.hold_to_charge(200.0)
        assert first.run() == "energy"
        spent_j, _ = first.spending.joules()
    assert spent_j is not None
    assert 150.0 < spent_j <= 200.0
    assert schema.load(made.out / "plan.json", Plan).caps.energy_j is None  # written by what the first steps said
    made.energy = EnergyMeter(UserConstant(10.0), clock=made.clock, thread=False)
    with made.energy:  # as much again in the battery, which the joules spent before have left it with
        again = made.loop()
        again.resume()
        assert again.hold_to_charge(200.0)
        steps = again.progress.step
        assert again.run() == "energy"
        all_j, _ = again.spending.joules()
    assert again.progress.step > steps
    assert all_j is not None
    assert spent_j + 150.0 < all_j <= spent_j + 200.0


def test_a_cap_tighter_than_the_battery_stays(stage: Any) -> None:
    made = stage(power_w=10.0, energy_j=100.0)
    loop = made.loop()
    assert not loop.hold_to_charge(200.0)
    assert loop.governor.caps.energy_j == 100.0


def test_memory_that_runs_out_over_validation_images_costs_smaller_groups_first(stage: Any) -> None:
    made = stage()
    loop = made.loop()
    failures = [OutOfMemoryError("scripted")]

    def prepare(epoch: int, stop_batch: int | None = None, micro_batch_size: int = 1) -> Any:
        if failures:
            raise failures.pop()
        yield from ()

    loop.val.prepare, loop.val.ease = prepare, lambda: True
    assert loop.run() == "epochs"
    assert loop.progress.rung == 0
    assert made.events() == ["tightened"]
    assert loop.engine.limits == []


@pytest.mark.parametrize("which", ["train", "val"])
def test_pressure_while_images_are_prepared_makes_groups_smaller_then_turns_a_knob(stage: Any, which: str) -> None:
    """Filling a cache takes hours on a small board: others must not have to wait for the first step."""
    made = stage()
    loop = made.loop()
    source = getattr(loop, which)
    eased, squeezes, prepared = [True], [], []

    def prepare(epoch: int, stop_batch: int | None = None, micro_batch_size: int = 1) -> Any:
        while len(prepared) < 6:
            prepared.append(micro_batch_size)
            if len(prepared) in (2, 4):
                squeezes.append(Squeeze("scripted", over_cap=False))
            yield 1

    source.prepare, source.ease = prepare, lambda: bool(eased and eased.pop())
    loop.governor.squeeze = lambda: squeezes.pop() if squeezes else None
    assert loop.run() == "epochs"
    assert len(prepared) == 6
    assert made.events() == ["tightened", "tightened"]
    assert "smaller groups" in made.records("event")[0]["message"]
    assert loop.progress.rung == 1
    assert prepared[-1] < prepared[0]


def test_preparing_that_breaks_the_cap_whatever_is_turned_ends_the_run(stage: Any) -> None:
    made = stage()
    loop = made.loop()
    loop.train.prepare = lambda epoch, stop_batch=None, micro_batch_size=1: (count for count in (1, 1))
    loop.train.ease = lambda: False
    loop.governor.squeeze = lambda: Squeeze("scripted", over_cap=True)
    assert loop.run() == "memory"
    assert loop.progress.step == 0


def test_a_ladder_that_became_shorter_is_no_defect(stage: Any) -> None:
    made = stage(epochs=60)
    made.engine.on_step = lambda step: setattr(made, "interrupted", step == 9)
    first = made.loop()
    first.progress.rung, first.progress.micro_batch_size = 99, 1
    first.engine.on_step = lambda step: setattr(made, "interrupted", True)
    first.knobs.tighten = lambda reason: True
    first.knobs.loosen = lambda: None
    assert first.run() == "user"
    made.interrupted, made.engine.on_step = False, lambda step: None
    again = made.loop()
    again.resume()
    assert again.progress.rung == len(again.knobs.ladder) - 1
    assert again.progress.micro_batch_size == again.knobs.ladder[-1].micro_batch_size
    assert again.run() == "epochs"
