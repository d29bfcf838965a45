"""The loop with a scripted engine: what it does about memory, patience, bad losses and interruptions."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetune.data.loader import Batch
from edgetune.device.energy import EnergyMeter
from edgetune.device.power.constant import UserConstant
from edgetune.device.pressure import Pressure
from edgetune.errors import StorageError
from edgetune.train.engine import StepReport


def test_runs_every_epoch_and_counts_what_was_done(stage: Any) -> None:
    made = stage()
    loop = made.loop()
    assert loop.run() == "epochs"
    assert loop.progress.step == 5 * 4
    assert loop.progress.images == 5 * 24
    assert loop.progress.train_flops == 100 * 5 * 24
    assert loop.progress.epochs_s == [4.0] * 5  # four steps of a second; evaluation and saving are not in it
    assert loop.progress.eval_s == 10.0
    assert {path.name for path in made.out.iterdir()} == {
        "best.safetensors", "last.safetensors", "metrics.jsonl", "mistakes.json", "plan.json", "state",
    }  # fmt: skip


def test_an_epoch_s_loss_is_the_mean_of_the_batches_that_were_there(stage: Any) -> None:
    """A batch whose images all can't be read is not handed out, and the next one has the number after its."""
    made = stage(epochs=1)
    loop = made.loop()
    epoch = loop.train.epoch
    loop.train.epoch = lambda *arguments: (batch for batch in epoch(*arguments) if batch.number != 1)
    loop.run()
    assert loop.progress.step == made.plan.steps_per_epoch - 1
    assert made.records("epoch")[0]["train_loss"] == 1.0


def test_patience_ends_a_run_and_the_best_is_kept(stage: Any) -> None:
    made = stage(patience=2)
    made.engine.accuracies = [0.25, 0.75, 0.5, 0.75]
    loop = made.loop()
    assert loop.run() == "patience"
    assert loop.progress.best == (1, 0.75)
    assert len(loop.progress.evaluations) == 4
    assert json.loads((made.out / "best.safetensors").read_text()) == 0.75
    assert json.loads((made.out / "last.safetensors").read_text()) == 0.75


def test_evaluation_can_be_rarer_but_never_misses_the_end(stage: Any) -> None:
    made = stage(evaluate_every=2)
    loop = made.loop()
    assert loop.run() == "epochs"
    assert [epoch for epoch, _ in loop.progress.evaluations] == [1, 3, 4]
    assert len(loop.progress.epochs_s) == 5


def test_out_of_memory_halves_the_micro_batch_and_repeats_the_step(stage: Any) -> None:
    made = stage()
    made.engine.most_images = 2
    loop = made.loop()
    assert loop.run() == "epochs"
    assert [micro for _, micro in made.engine.steps] == [1] * 20  # 6, 3, then 1
    assert sum(images for images, _ in made.engine.steps) == 5 * 24
    assert made.events() == ["tightened", "tightened"]


def test_out_of_memory_with_one_image_ends_with_a_checkpoint(stage: Any) -> None:
    made = stage()
    made.engine.on_step = lambda step: setattr(made.engine, "most_images", 0) if step == 4 else None
    loop = made.loop()
    assert loop.run() == "memory"
    assert made.events()[-1] == "memory"
    assert (made.out / "best.safetensors").exists()
    assert (made.out / "last.safetensors").exists()


def test_memory_that_runs_out_while_saving_is_looked_for_elsewhere(stage: Any) -> None:
    made = stage()
    made.engine.on_step = lambda step: setattr(made.engine, "saving_needs_rest", True) if step == 6 else None
    assert made.loop().run() == "epochs"
    assert made.engine.rests == 1
    assert (made.out / "last.safetensors").exists()


def test_a_save_that_finds_no_memory_at_all_ends_with_a_sentence_and_the_last_state(stage: Any) -> None:
    made = stage()
    made.engine.accuracies = [0.1, 0.2]  # each the best so far
    made.engine.on_step = lambda step: setattr(made.engine, "saving_fails", step >= 6)
    with pytest.raises(
        StorageError, match=r"best\.safetensors can't be written, memory ran out .* a state goes on with --resume\."
    ):
        made.loop().run()
    assert json.loads((made.out / "state" / "state.safetensors").read_text())["step"] == 4
    made.engine.saving_fails, made.engine.on_step = False, lambda step: None
    loop = made.loop()
    loop.resume()
    assert loop.run() == "epochs"


def test_memory_above_the_cap_tightens_and_then_ends_the_run(stage: Any) -> None:
    made = stage(memory_bytes=1)
    loop = made.loop()
    assert loop.run() == "memory"
    assert made.events()[:2] == ["tightened", "tightened"]
    assert made.events()[-1] == "memory"
    assert set(made.events()[:-1]) == {"tightened"}


def test_a_co_tenant_that_takes_memory_is_survived(stage: Any) -> None:
    """It comes after ten steps and goes after sixty; the run tightens, ends as planned, and is as planned again."""
    made = stage(epochs=60)

    def tenant(step: int) -> None:
        taken = 10 <= step < 60
        made.pressure = Pressure(available_bytes=(10 if taken else 4000) << 20, total_bytes=4 << 30)

    made.engine.on_step = tenant
    loop = made.loop()
    assert loop.run() == "epochs"
    events = made.events()
    assert events[0] == "tightened"
    assert events.count("tightened") == events.count("loosened")
    assert loop.progress.rung == 0
    micro = [micro for _, micro in made.engine.steps]
    assert micro[:10] == [made.plan.micro_batch_size] * 10
    assert min(micro) < made.plan.micro_batch_size
    assert micro[-1] == made.plan.micro_batch_size
    assert made.engine.limits[-1] == (made.plan.k, [block.keep_max_tokens for block in made.plan.blocks])


def test_a_machine_that_stays_full_does_not_end_the_run(stage: Any) -> None:
    made = stage(epochs=60)
    made.pressure = Pressure(available_bytes=1 << 20, total_bytes=4 << 30)
    loop = made.loop()
    assert loop.run() == "epochs"
    assert loop.progress.rung == len(loop.knobs.ladder) - 1
    assert made.events().count("memory") == 1  # said once


def test_a_resumed_run_is_as_tight_as_it_was(stage: Any) -> None:
    made = stage(epochs=60)
    made.engine.most_images = 2
    made.engine.on_step = lambda step: setattr(made, "interrupted", step == 9)
    assert made.loop().run() == "user"
    tight = made.engine.limits[-1]
    again = made.loop()
    made.engine.limits.clear()
    made.interrupted = False
    again.resume()
    assert again.progress.rung == 2
    assert made.engine.limits == [tight]


def test_an_accelerator_s_peak_is_that_of_all_sittings(stage: Any) -> None:
    made = stage()
    made.engine.device_bytes = 900
    made.engine.on_step = lambda step: setattr(made, "interrupted", step == 5)
    assert made.loop().run() == "user"
    made.interrupted, made.engine.on_step, made.engine.device_bytes = False, lambda step: None, 300
    again = made.loop()
    again.resume()
    assert again.run() == "epochs"
    assert again.progress.device_peak_bytes == 900


def test_slowed_by_heat_is_an_event(stage: Any) -> None:
    made = stage()
    made.throttle = lambda: {"cpu_throttle_count": len(made.engine.steps) // 8, "cpu_mc": 80_000}
    loop = made.loop()
    assert loop.run() == "epochs"
    assert made.events().count("throttled") == 2


def test_a_loss_that_is_not_a_number_stops_before_it_spoils_anything(stage: Any) -> None:
    made = stage()
    made.engine.losses = {7: float("nan")}
    loop = made.loop()
    assert loop.run() == "nan"
    assert loop.progress.step == 6
    assert json.loads((made.out / "best.safetensors").read_text()) == 0.5
    assert not (made.out / "last.safetensors").exists()
    assert made.events() == ["nan"]


def test_a_model_that_broke_in_its_last_step_is_never_the_best(stage: Any) -> None:
    made = stage()
    made.engine.val_loss = float("nan")
    loop = made.loop()
    assert loop.run() == "nan"
    assert not (made.out / "best.safetensors").exists()
    assert not (made.out / "last.safetensors").exists()


@pytest.mark.parametrize(("caps", "ending"), [({"time_s": 16.0}, "time"), ({"patience": 1}, "patience")])
def test_resuming_a_finished_run_changes_nothing(stage: Any, caps: dict[str, Any], ending: str) -> None:
    made = stage(**caps)
    first = made.loop()
    assert first.run() == ending
    again = made.loop()
    again.resume()
    assert again.run() == ending
    assert again.progress.step == first.progress.step
    assert again.progress.evaluations == first.progress.evaluations
    assert again.progress.epochs_s == first.progress.epochs_s


def test_joules_that_were_not_known_once_are_not_known_later(stage: Any) -> None:
    made = stage(power_w=10.0)
    with made.energy:
        loop = made.loop()
        loop.progress.spent_j = None
        loop.progress.spent_estimated_j = 500.0
        assert loop.run() == "epochs"
        assert loop.spending.joules()[0] is None
        estimate = loop.spending.estimated_joules()
    assert estimate is not None
    assert estimate > 500.0


def test_an_interrupted_run_goes_on_where_it_was(stage: Any) -> None:
    made = stage(power_w=10.0)
    made.engine.on_step = lambda step: setattr(made, "interrupted", step == 5)
    with made.energy:
        first = made.loop()
        assert first.run() == "user"
    assert first.progress.step == 6
    made.interrupted, made.engine.on_step = False, lambda step: None
    made.energy = EnergyMeter(UserConstant(10.0), clock=made.clock, thread=False)
    with made.energy:
        second = made.loop()
        second.resume()
        assert second.run() == "epochs"
        joules, _ = second.spending.joules()
    assert second.progress.step == 20
    assert second.progress.images == 5 * 24
    assert len(second.progress.epochs_s) == 5
    assert joules == pytest.approx(10.0 * (20 + 5 * 2), rel=0.05)
    steps = [json.loads(line)["step"] for line in (made.out / "metrics.jsonl").read_text().splitlines()
             if json.loads(line)["kind"] == "step"]  # fmt: skip
    assert steps == list(range(1, 21))


def test_what_was_logged_after_the_last_state_is_forgotten(tmp_path: Path) -> None:
    from edgetune.train.journal import Metrics

    metrics = Metrics(tmp_path / "metrics.jsonl")
    for step in range(1, 5):
        metrics.write("step", step, loss=float("nan") if step == 2 else 0.5)
    metrics.write("epoch", 3, epoch=0)
    with metrics.path.open("a") as log:
        log.write('{"kind": "step", "st')  # a torn line
    metrics.rewind(3, epoch=0)
    records = [json.loads(line) for line in metrics.path.read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert records[1]["loss"] is None


def test_one_batch_is_alive_at_a_time(stage: Any) -> None:
    """A batch of a ViT-Ti is five megabytes, which a small process would notice."""
    made = stage()
    loop = made.loop()
    alive: list[weakref.ref[Any]] = []
    step, epoch = made.engine.train_step, loop.train.epoch

    def watched_step(batch: Batch, *rest: Any) -> StepReport:
        alive.append(weakref.ref(batch.images))
        report: StepReport = step(batch, *rest)
        return report

    def watched_epoch(*where: int) -> Iterator[Batch]:
        source = epoch(*where)
        while True:
            assert not any(batch() is not None for batch in alive)  # asked for the next, nobody holds one
            batch = next(source, None)
            if batch is None:
                return
            yield batch
            del batch

    made.engine.train_step, loop.train.epoch = watched_step, watched_epoch
    loop.run()
    assert len(alive) > 2
