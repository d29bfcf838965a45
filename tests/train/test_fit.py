"""Whole runs on a tiny data set: artifacts, methods, resuming, and every way a run can end."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from safetensors import safe_open

from edgetune import schema
from edgetune.device.system import System
from edgetune.errors import DivergedError, InputError
from edgetune.measure.memory import _is_memory
from edgetune.model.registry import find_spec
from edgetune.model.vit import VisionTransformer, initialise
from edgetune.model.weights import save_weights
from edgetune.schema import Mistakes, Plan, Profile, Result
from edgetune.train.fit import _hold_to_charge, exit_code, fit, resume

DEVICES = Path(__file__).parents[1] / "fixtures" / "devices"
METHODS = ("edgetune", "alast", "full", "checkpoint", "head", "last-2", "lora", "alast-lora", "random-k")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled architecture with random weights."""
    torch.manual_seed(7)
    model = VisionTransformer(find_spec("vit_nano_patch8_64").at(32))
    initialise(model)
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save_weights(path, model, {})
    return path


def losses(run: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if record["kind"] == "step"]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_leaves_whole_artifacts(
    method: str, plan_for: Any, weights: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    plan = plan_for(method=method, weights=weights)
    result = fit(plan, run, quiet=True)
    assert (result.stopped_by, exit_code(result)) == ("epochs", 0)
    assert schema.load(run / "result.json", Result) == result
    kept = schema.load(run / "plan.json", Plan)
    assert kept.calibrated is not None  # by the first steps, though an epoch has fewer of them than it takes
    assert msgspec.structs.replace(kept, calibrated=None) == plan
    assert schema.load(run / "mistakes.json", Mistakes).images == 12
    assert len(losses(run)) == plan.total_steps == 8
    assert result.work.images == 48
    assert result.work.trained_block_steps == 8 * plan.k
    assert result.memory.baseline_bytes is not None
    assert result.memory.measured_peak_bytes is not None
    # what it grows by can fit in between, and what earlier tests left free goes back to the kernel meanwhile
    assert result.memory.measured_peak_bytes > 0.9 * result.memory.baseline_bytes
    assert 0 < sum(result.time.epochs_s) < result.time.total_s
    assert schema.load(run / "profile.json", Profile).memory.total_bytes
    assert "<html" in (run / "report.html").read_text()
    names = {parameter.name for parameter in find_spec(plan.model).at(32, 3).parameters()}
    assert set(tensors(run / "best.safetensors")) == set(tensors(run / "last.safetensors")) == names


def test_only_what_the_plan_lets_train_changes(plan_for: Any, weights: Path, tmp_path: Path) -> None:
    fit(plan_for(method="last-2", weights=weights), tmp_path / "run", quiet=True)
    before, after = tensors(weights), tensors(tmp_path / "run" / "last.safetensors")
    changed = {
        name for name in before if before[name].shape != after[name].shape or not before[name].equal(after[name])
    }
    assert {name.split(".")[0] for name in changed} == {"blocks", "norm", "head"}
    assert {name.split(".")[1] for name in changed if name.startswith("blocks.")} == {"4", "5"}


def test_micro_batches_accumulate_the_same_gradient(plan_for: Any, weights: Path, tmp_path: Path) -> None:
    plan = plan_for(method="full", weights=weights, epochs=1)
    ends = []
    for micro in (6, 4, 1):
        out = tmp_path / str(micro)
        fit(msgspec.structs.replace(plan, micro_batch_size=micro), out, quiet=True)
        ends.append([loss for _, loss in losses(out)])
    for other in ends[1:]:
        assert other == pytest.approx(ends[0], rel=1e-4)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    plan_for: Any, weights: Path, tmp_path: Path
) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        fit(plan_for(weights=weights, seed=seed), tmp_path / name, quiet=True)
    assert losses(tmp_path / "first") == losses(tmp_path / "again")
    assert losses(tmp_path / "first") != losses(tmp_path / "other")


KILLABLE = """
import sys
from pathlib import Path
from edgetune import schema
from edgetune.train import fit as room
plan, out = sys.argv[1:]
room.fit(schema.load(Path(plan), schema.Plan), Path(out), quiet=True, save_every_s=0.0)
"""


def start(plan: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", KILLABLE, str(plan), str(out)])


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= step:
            return
        time.sleep(0.01)
    pytest.fail("the run did not get that far")


@pytest.mark.parametrize("method", ["edgetune", "alast"])
def test_a_killed_run_resumes_with_the_same_losses_to_the_last_bit(
    method: str, plan_for: Any, weights: Path, tmp_path: Path
) -> None:
    plan = plan_for(method=method, weights=weights, epochs=4)
    schema.save(plan, tmp_path / "plan.json")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(plan, whole, quiet=True)
    process = start(tmp_path / "plan.json", cut)
    wait_for_step(cut, 6)
    process.kill()
    process.wait()
    assert len(losses(cut)) < plan.total_steps, "the kill came too late to show anything"
    resume(cut, quiet=True)
    assert losses(cut) == losses(whole)
    ends = [tensors(run / "last.safetensors") for run in (whole, cut)]
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_with_130_and_can_be_resumed(
    number: signal.Signals, plan_for: Any, weights: Path, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = f"--model vit_nano_patch8_64 --weights {weights} --image-size 32 --batch-size 6 --epochs 600 --threads 1"
    command = [sys.executable, "-m", "edgetune", "fit", str(photos), *options.split(), "--out", str(run), "--quiet"]
    process = subprocess.Popen(command)
    wait_for_step(run, 5)
    process.send_signal(number)
    assert process.wait(60) == 130
    result = schema.load(run / "result.json", Result)
    assert result.stopped_by == "user"
    done = len(losses(run))
    assert done < 2400
    # the caps of the rest of the run: enough time for a few steps more
    plan = schema.load(run / "plan.json", Plan)
    later = msgspec.structs.replace(plan.caps, time_s=result.time.total_s + 2.0)
    schema.save(msgspec.structs.replace(plan, caps=later), run / "plan.json")
    again = resume(run, quiet=True)
    assert again.stopped_by == "time"
    steps = [step for step, _ in losses(run)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > done
    assert again.time.total_s > result.time.total_s


def test_a_diverging_loss_ends_with_a_sentence_and_the_last_good_checkpoint(
    plan_for: Any, weights: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"--lr 1e\+30 made the loss diverge; try a lower one"):
        fit(plan_for(method="full", weights=weights, lr=1e30), run, quiet=True)
    assert schema.load(run / "result.json", Result).stopped_by == "nan"
    for file in run.glob("*.safetensors"):
        assert all(bool(value.isfinite().all()) for value in tensors(file).values())


def test_a_folder_that_exists_is_never_written_to(plan_for: Any, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("all my work")
    with pytest.raises(InputError, match=r"--out .*run exists already; choose another folder"):
        fit(plan_for(weights=weights), tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_run_that_could_not_begin_leaves_its_folder_free(plan_for: Any, weights: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        fit(plan_for(weights=damaged), run, quiet=True)
    assert not run.exists()
    fit(plan_for(weights=weights, epochs=1), run, quiet=True)


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run that can be resumed"):
        resume(tmp_path, quiet=True)


def test_a_damaged_state_is_said(plan_for: Any, weights: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(plan_for(weights=weights, epochs=1), run, quiet=True)
    state = run / "state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="does not hold this run's state"):
        resume(run, quiet=True)


def test_a_time_cap_ends_a_run_with_a_usable_checkpoint(plan_for: Any, weights: Path, tmp_path: Path) -> None:
    plan = plan_for(weights=weights, epochs=500)
    cap_s = 8.0
    plan = msgspec.structs.replace(plan, caps=msgspec.structs.replace(plan.caps, time_s=cap_s))
    result = fit(plan, tmp_path / "run", quiet=True)
    assert (result.stopped_by, exit_code(result)) == ("time", 4)
    assert result.time.total_s <= cap_s
    assert result.accuracy.best is not None
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_the_watts_of_a_plan_hold_its_energy_cap_without_being_said_again(
    plan_for: Any, weights: Path, tmp_path: Path
) -> None:
    plan = plan_for(weights=weights, epochs=500, power_w=10.0)
    plan = msgspec.structs.replace(plan, caps=msgspec.structs.replace(plan.caps, energy_j=60.0))
    result = fit(plan, tmp_path / "run", quiet=True)
    assert result.stopped_by == "energy"
    assert result.energy.total_j is not None
    assert result.energy.total_j <= 60.0


@pytest.mark.skipif(not DEVICES.is_dir(), reason="an sdist comes without the board trees")
def test_the_charge_of_a_battery_is_a_cap(plan_for: Any, weights: Path, tmp_path: Path) -> None:
    board = tmp_path / "board"
    shutil.copytree(DEVICES / "sbc-battery", board)
    (board / "sys/class/power_supply/axp20x-battery/charge_now").write_text("4474\n")  # 63.2 J at 3.921 V
    plan = plan_for(weights=weights, epochs=500, power_w=10.0)
    result = fit(plan, tmp_path / "run", quiet=True, system=System(board))
    assert (result.stopped_by, exit_code(result)) == ("energy", 4)
    assert result.energy.cap_j == pytest.approx(60, rel=0.01)
    assert result.energy.total_j is not None
    assert 40 <= result.energy.total_j <= 60
    assert any("the battery holds" in warning for warning in result.warnings)


@pytest.mark.skipif(not DEVICES.is_dir(), reason="an sdist comes without the board trees")
@pytest.mark.parametrize(("scope", "said"), [("cpu-package", True), ("wall", False), ("battery", False)])
def test_a_sensor_of_a_part_of_the_machine_is_no_measure_of_a_charge(scope: str, said: bool) -> None:
    loop: Any = SimpleNamespace(hold_to_charge=lambda most_j: True)
    source: Any = SimpleNamespace(name="rapl", scope=scope)
    warned = _hold_to_charge(loop, System(DEVICES / "sbc-battery"), source)
    assert any("the cpu-package alone" in sentence for sentence in warned) == said


def test_an_energy_cap_that_nothing_measures_is_refused(plan_for: Any, weights: Path, tmp_path: Path) -> None:
    plan = plan_for(weights=weights)
    plan = msgspec.structs.replace(plan, caps=msgspec.structs.replace(plan.caps, energy_j=60.0))
    nowhere = System(tmp_path)  # a machine without sensors
    with pytest.raises(InputError, match="--energy can't be held here"):
        fit(plan, tmp_path / "run", quiet=True, system=nowhere)


def test_a_memory_cap_below_the_bare_process_is_refused(plan_for: Any, weights: Path, tmp_path: Path) -> None:
    plan = plan_for(weights=weights)
    plan = msgspec.structs.replace(plan, caps=msgspec.structs.replace(plan.caps, memory_bytes=50_000_000))
    with pytest.raises(InputError, match=r"less than the .* that the bare process takes"):
        fit(plan, tmp_path / "run", quiet=True)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")
def test_a_run_folder_in_memory_is_warned_of(plan_for: Any, weights: Path, tmp_path: Path) -> None:
    plan = plan_for(weights=weights, epochs=1)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        warned = fit(plan, Path(place) / "run", quiet=True).warnings
    assert any("is on a file system in memory" in sentence for sentence in warned)
    kept = fit(plan, tmp_path / "run", quiet=True).warnings
    if not _is_memory(tmp_path, Path("/proc/self/mounts")):
        assert not any("is on a file system in memory" in sentence for sentence in kept)


def test_data_that_changed_after_the_plan_is_refused(
    plan_for: Any, weights: Path, photos: Path, tmp_path: Path
) -> None:
    plan = plan_for(weights=weights)
    plan = msgspec.structs.replace(plan, data=msgspec.structs.replace(plan.data, train_images=23))
    with pytest.raises(InputError, match="has other images than the plan was made for; run `edgetune plan` again"):
        fit(plan, tmp_path / "run", quiet=True)


def test_one_step_an_epoch_that_diverges_is_not_kept(plan_for: Any, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        fit(plan_for(method="full", weights=weights, batch_size=24, lr=1e30), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_energy_from_a_constant_is_marked_as_modelled(plan_for: Any, weights: Path, tmp_path: Path) -> None:
    result = fit(plan_for(weights=weights, epochs=1), tmp_path / "run", power_w=10.0, quiet=True)
    assert result.energy.measured is False
    assert result.energy.epochs_j == [pytest.approx(10.0 * result.time.epochs_s[0], rel=0.1)]
    assert result.energy.total_j is not None
    assert 10.0 * sum(result.time.epochs_s) < result.energy.total_j <= 10.0 * result.time.total_s


FULL_DISK = """
import resource, sys
from pathlib import Path
from edgetune import schema
from edgetune.device.system import System
from edgetune.errors import EdgetuneError
from edgetune.train import fit as room
from edgetune.train.loop import Loop
plan, out = sys.argv[1:]
saved = Loop._save_last
def fill_up(loop):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    saved(loop)
Loop._save_last = fill_up
try:
    room.fit(schema.load(Path(plan), schema.Plan), Path(out), quiet=True)
except EdgetuneError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_full_disk_leaves_the_former_checkpoint_whole(plan_for: Any, weights: Path, tmp_path: Path) -> None:
    plan = plan_for(weights=weights, epochs=1)
    schema.save(plan, tmp_path / "plan.json")
    run = tmp_path / "run"
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "plan.json"), str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "last.safetensors could not be written" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert tensors(run / "best.safetensors")
    assert not list(run.rglob(".*.new"))
    assert resume(run, quiet=True).stopped_by == "epochs"
