"""Other people's trainers, run as `edgetune bench` runs them: the same images, the same path, the same meters."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgetune.bench import series as series_module
from edgetune.bench.records import Bench, Figures
from edgetune.plan import make_plan
from tests.bench.facts import Told, command

MISSING = [name for name in ("timm", "transformers", "peft", "accelerate") if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} missing: edgetune[bench] brings them")


@pytest.fixture(scope="module")
def peers(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    out = tmp_path_factory.mktemp("peers") / "out"
    methods = "eager-full,timm-checkpoint,peft-lora,peft-lorafa,random-k"
    line = command(photos, out, "--methods", methods, "--repetitions", "1", "--evaluate-steps", "2", "--power", "7W")
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Told(out, done.stdout, msgspec.json.decode((out / "bench.json").read_bytes(), type=Bench))


def figures_of(told: Told) -> dict[str, Figures]:
    runs = series_module.read_runs(told.out / "runs.jsonl")
    assert [run.error for run in runs if run.error] == []
    return {run.entry.name: run.figures for run in runs}


def test_all_of_them_run_and_see_as_many_images(peers: Told) -> None:
    for figures in figures_of(peers).values():
        assert figures.images == 36
        assert len(figures.epochs_s) == 2
        assert figures.above_baseline_bytes > 1 << 20


def test_checkpointing_walks_the_same_path(peers: Told) -> None:
    found = figures_of(peers)
    assert found["timm-checkpoint"].train_losses == pytest.approx(found["eager-full"].train_losses, abs=2e-5)


def test_adapters_learn_and_freezing_half_of_them_is_another_path(peers: Told) -> None:
    found = figures_of(peers)
    lora, lorafa = found["peft-lora"].train_losses, found["peft-lorafa"].train_losses
    assert lora[1] < lora[0]
    assert lorafa[1] < lorafa[0]
    assert lora != lorafa


def test_the_course_is_taken_outside_the_figures(peers: Told) -> None:
    for name, figures in figures_of(peers).items():
        assert [point.step for point in figures.curve] == [2, 4, 6], name  # three steps an epoch
        times = [point.train_s for point in figures.curve]
        assert times == sorted(times)
        # the course is read a moment before the epoch's clock is; on a busy machine a moment is milliseconds
        assert times[-1] == pytest.approx(sum(figures.epochs_s), rel=1e-6, abs=0.02)
        assert figures.curve[-1].accuracy == figures.accuracy
        assert figures.eval_s > 0


def test_a_constant_power_gives_joules_that_are_marked(peers: Told) -> None:
    for name, figures in figures_of(peers).items():
        assert figures.energy_measured is False
        assert figures.epochs_j == pytest.approx([7.0 * seconds for seconds in figures.epochs_s], rel=0.02), name
        assert figures.curve[-1].train_j == pytest.approx(sum(figures.epochs_j), rel=0.02)
    assert all(row.energy_measured is False for row in peers.bench.methods)


def test_the_trainer_is_given_the_same_images_in_the_same_order(photos: Path) -> None:
    from edgetune.bench.shared import loaders
    from edgetune.bench.trainer import _Batches

    plan = make_plan(photos, model="vit_nano_patch8_64", image_size=32, batch_size=6, method="lora", seed=3)
    given = _Batches(loaders(plan)[0])
    ours = loaders(plan)[0]
    for epoch in range(2):
        batches = list(given)
        assert len(batches) == len(given)
        for theirs, batch in zip(batches, ours.epoch(epoch), strict=True):
            np.testing.assert_array_equal(theirs["pixel_values"].numpy(), batch.images)
            np.testing.assert_array_equal(theirs["labels"].numpy(), batch.labels)
