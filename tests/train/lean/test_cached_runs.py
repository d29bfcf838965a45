"""Whole runs from cached features: the weights a run without a cache ends with, whatever stops it on the way."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgetune import schema
from edgetune.data.features import FeatureWriter
from edgetune.data.folder import scan
from edgetune.data.loader import Batch, Loader
from edgetune.data.sizes import feature_bytes
from edgetune.errors import InputError
from edgetune.model.registry import find_spec
from edgetune.model.vit import VisionTransformer, initialise
from edgetune.model.weights import save_weights
from edgetune.schema import Plan, Result
from edgetune.train.budget import Budget
from edgetune.train.features import FeatureLoader
from edgetune.train.fit import fit, resume
from edgetune.train.folder import RunFolder
from edgetune.train.lean.below import FrozenPart
from edgetune.train.lean.engine import LeanEngine
from edgetune.train.lean.start import start_engine

LEAN = (
    "trainer=lean", "trained_blocks=2", "k=2", "token_min=1", "token_max=1", "precision=fp32", "frozen_precision=fp32",
    "frozen_weights=disk", "optimizer=adamw", "optimizer_state=int8", "saved_activations=full", "saved_precision=int8",
    "feature_views=1",
)  # fmt: skip
CACHED, PLAIN = (*LEAN, "feature_cache=fp16"), (*LEAN, "feature_cache=off")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled architecture with random weights."""
    torch.manual_seed(7)
    model = VisionTransformer(find_spec("vit_nano_patch8_64").at(32))
    initialise(model)
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save_weights(path, model, {})
    return path


@pytest.fixture
def plan(plan_for, weights: Path) -> Callable[..., Plan]:
    """A function that plans a lean run; more levers and `make_plan`'s arguments."""

    def make(*levers: str, **arguments: Any) -> Plan:
        settings: dict[str, Any] = {"method": "edgetune", "weights": weights, "augment": False, "epochs": 3}
        made: Plan = plan_for(levers=[*levers], **(settings | arguments))
        # two parts a batch, and groups of an extraction that are smaller than the data set
        return msgspec.structs.replace(made, micro_batch_size=3)

    return make


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six images a group."""
    for room in ("edgetune.train.features", "edgetune.plan.cache"):
        monkeypatch.setattr(f"{room}.group_size", lambda spec, part: max(part, 6 // part * part))
    monkeypatch.setattr("edgetune.train.features.filling_part", lambda job: 1)


def ends(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last.safetensors")


def losses(run: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if record["kind"] == "step"]


def cached_files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "state").glob("features-*"))


def test_a_cache_changes_weights_by_its_rounding_alone(plan, tmp_path: Path) -> None:
    levers = [[*group, "optimizer_state=fp32", "saved_precision=fp32"] for group in (CACHED, PLAIN)]
    with_cache, without = plan(*levers[0]), plan(*levers[1])
    assert with_cache.feature_cache is not None
    assert without.feature_cache is None
    results = [fit(made, tmp_path / name, quiet=True) for made, name in ((with_cache, "with"), (without, "without"))]
    before = load_file(with_cache.weights)
    cached, passed = ends(tmp_path / "with"), ends(tmp_path / "without")
    moved = {name: value - before[name] for name, value in passed.items() if name.startswith("blocks.5.mlp.fc")}
    for name, expected in moved.items():
        assert float((cached[name] - before[name] - expected).norm() / expected.norm()) < 0.05, name
    for (step, cached_loss), (other, loss) in zip(losses(tmp_path / "with"), losses(tmp_path / "without"), strict=True):
        assert step == other
        assert cached_loss == pytest.approx(loss, rel=2e-3)
    assert results[0].work.images == results[1].work.images == 3 * 24
    # the work of the frozen blocks: once instead of in every epoch
    assert results[0].work.train_flops < 0.75 * results[1].work.train_flops


def test_a_run_that_is_done_leaves_no_features_and_counts_their_bytes(plan, tmp_path: Path) -> None:
    with_cache, without = plan(*CACHED), plan(*PLAIN)
    cached = fit(with_cache, tmp_path / "with", quiet=True)
    assert cached_files(tmp_path / "with") == []
    passed = fit(without, tmp_path / "without", quiet=True)
    features = feature_bytes(24, (17, 192), "fp16") + feature_bytes(12, (17, 192), "fp16")
    assert with_cache.feature_cache.train_bytes + with_cache.feature_cache.val_bytes == features
    assert cached.work.bytes_written - passed.work.bytes_written == pytest.approx(features, abs=4096)


@pytest.fixture
def loaders(plan, tmp_path: Path):
    """A function that gives the image loader and the feature loader of a plan, on a copy of the photos if asked."""

    def make(*levers: str, spoil: tuple[str, ...] = (), out: str = "run", **arguments: Any):
        made = plan(*levers, **arguments)
        photos = Path(made.data.path)
        if spoil:
            photos = tmp_path / "spoiled"
            shutil.copytree(made.data.path, photos, dirs_exist_ok=True)
            for name in spoil:
                (photos / name).write_bytes(b"no picture")
        spec, images = find_spec(made.model), scan(photos, made.seed)
        common = {"image_size": 32, "mean": spec.mean, "std": spec.std, "seed": made.seed}
        augment = made.recipe.augment
        train = Loader(images.train, batch_size=6, augment=augment, flip=made.recipe.flip, **common)
        val = Loader(images.val, batch_size=3, augment=False, shuffle=False, **common)
        plain = Loader(images.train, batch_size=6, augment=augment, flip=made.recipe.flip, **common)
        engine, features, val_features = start_engine(made, RunFolder(tmp_path / out), train, val, resume=False)
        assert isinstance(features, FeatureLoader)
        return engine, plain, features, val_features

    return make


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_batches_are_those_of_the_images(precision: str, loaders) -> None:
    engine, images, features, _ = loaders(*LEAN, f"feature_cache={precision}")
    assert len(features) == len(images) == 24
    for epoch, start in ((0, 0), (1, 0), (5, 2)):
        expected, found = list(images.epoch(epoch, start)), list(features.epoch(epoch, start))
        assert [batch.number for batch in found] == [batch.number for batch in expected]
        for one, other in zip(expected, found, strict=True):
            assert other.labels.tolist() == one.labels.tolist()
            assert other.indices.tolist() == one.indices.tolist()
            x = engine.features(torch.from_numpy(one.images), 3).numpy()
            assert other.images.shape == x.shape
            assert np.linalg.norm(other.images - x) / np.linalg.norm(x) < (1e-3 if precision == "fp16" else 2e-2)


def test_views_take_turns_and_the_first_is_the_plain_image(loaders) -> None:
    engine, images, features, _ = loaders(*LEAN, "feature_cache=fp16", "feature_views=2", augment=True)
    by_epoch = []
    for epoch in range(4):
        values: dict[int, np.ndarray] = {}
        for batch in features.epoch(epoch):
            values |= dict(zip(batch.indices.tolist(), batch.images, strict=True))
        by_epoch.append(values)
    assert all(np.array_equal(by_epoch[0][index], by_epoch[2][index]) for index in range(24))
    assert all(np.array_equal(by_epoch[1][index], by_epoch[3][index]) for index in range(24))
    assert sum(not np.allclose(by_epoch[0][index], by_epoch[1][index], atol=0.05) for index in range(24)) > 12
    for view, epoch in ((None, 0), (1, 1)):
        for batch in images.pick(np.arange(24), 6, view):
            x = engine.features(torch.from_numpy(batch.images), 3).numpy()
            stored = np.stack([by_epoch[epoch][index] for index in batch.indices.tolist()])
            assert np.linalg.norm(stored - x) / np.linalg.norm(x) < 1e-3


def test_an_epoch_is_prepared_in_stretches_where_a_cap_may_end_it(loaders, tmp_path: Path) -> None:
    _, _, whole, _ = loaders(*CACHED, out="whole")
    expected = list(whole.epoch(0))
    assert list(whole.stretches(0, 1, whole=True)) == [range(1, 4)]
    _, _, features, val = loaders(*CACHED)
    assert list(features.stretches(0, 1)) == [range(1, 2), range(2, 3), range(3, 4)]
    assert list(val.stretches(0)) == [range(4)]
    found = []
    for stretch in features.stretches(0):
        if stretch.start == 2:  # a run that ends here, and another that goes on
            features.close()
            assert cached_files(tmp_path / "run") == ["features-train-0.partial"]
            _, _, features, _ = loaders(*CACHED)
        prepared = sum(features.prepare(0, stretch.stop, 3))
        assert prepared == 6
        found += features.epoch(0, stretch.start, stretch.stop)
    assert features.bytes_on_disk() == feature_bytes(24, (17, 192), "fp16")
    assert list(features.stretches(4)) == [range(4)]  # which shows the images in another order
    assert cached_files(tmp_path / "run") == ["features-train-0"]
    for one, other in zip(expected, found, strict=True):
        assert one.number == other.number
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.indices, other.indices)


def test_a_run_whose_time_ends_in_its_first_epoch_has_trained_on_what_it_prepared(
    plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FrozenPart.run

    def slow(self: FrozenPart, x: torch.Tensor, part: int, *, all_tokens: bool = False) -> torch.Tensor:
        time.sleep(2.0 * len(x) / 6)
        return run(self, x, part, all_tokens=all_tokens)

    began = time.monotonic()
    fit(plan(*CACHED, epochs=1), tmp_path / "whole", quiet=True)
    whole_s = time.monotonic() - began
    monkeypatch.setattr(FrozenPart, "run", slow)
    monkeypatch.setattr(Budget, "save_s", 0.1)  # however slow this disk is
    made = plan(*CACHED, epochs=40, time_s=1e6)
    # four stretches take two seconds each, twelve images to evaluate are expected to take four
    made = msgspec.structs.replace(made, caps=msgspec.structs.replace(made.caps, time_s=whole_s + 11.0))
    result = fit(made, tmp_path / "run", quiet=True)
    assert result.stopped_by == "time"
    assert 0 < result.work.images < 24
    assert cached_files(tmp_path / "run") == ["features-train-0.partial", "features-val-0"]
    later = msgspec.structs.replace(made.caps, time_s=result.time.total_s + 30.0)
    schema.save(msgspec.structs.replace(made, caps=later, epochs=2, wanted_epochs=2), tmp_path / "run" / "plan.json")
    monkeypatch.setattr(FrozenPart, "run", run)
    again = resume(tmp_path / "run", quiet=True)
    assert (again.stopped_by, again.work.images) == ("epochs", 48)
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, 9))


def test_images_that_cannot_be_read_are_left_out(loaders, tmp_path: Path) -> None:
    spoil = ("train/blue/1.png", "train/red/5.png", "val/green/0.png")
    _, images, features, val = loaders(*CACHED, spoil=spoil)
    for epoch in range(2):
        expected, found = list(images.epoch(epoch)), list(features.epoch(epoch))
        assert [batch.indices.tolist() for batch in found] == [batch.indices.tolist() for batch in expected]
        assert [batch.labels.tolist() for batch in found] == [batch.labels.tolist() for batch in expected]
        assert sum(len(batch.labels) for batch in found) == 22
    assert sum(len(batch.labels) for batch in val.epoch(0)) == 11
    assert sorted(features.warnings) == sorted(images.warnings)
    assert len(features.warnings) == 2
    features.close()
    _, _, again, _ = loaders(*CACHED, spoil=spoil)  # a later sitting, which reads no image but says what is missing
    assert sum(len(batch.labels) for batch in again.epoch(0)) == 22
    assert len(again.warnings) == 2
    assert all("could not be read when its features were made" in warning for warning in again.warnings)
    again.close()


def test_a_damaged_cache_is_said_and_a_torn_one_made_anew(loaders, tmp_path: Path) -> None:
    _, _, features, _ = loaders(*CACHED)
    first = [batch.images for batch in features.epoch(0)]
    features.close()
    file = tmp_path / "run" / "state" / "features-train-0"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    _, _, features, _ = loaders(*CACHED)
    assert all(np.array_equal(one, batch.images) for one, batch in zip(first, features.epoch(0), strict=True))
    assert file.read_bytes() == whole
    features.close()
    spoiled = bytearray(whole)
    spoiled[len(whole) // 2] ^= 1
    file.write_bytes(bytes(spoiled))
    _, _, features, _ = loaders(*CACHED)
    with pytest.raises(InputError, match="features-train-0 is damaged at record"):
        list(features.epoch(0))


# -- killed and resumed -----------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from edgetune import schema
from edgetune.data.features import FeatureWriter
from edgetune.train import fit as room
from edgetune.plan import cache
from edgetune.train import features
from edgetune.train.lean.engine import LeanEngine
torch.set_num_threads(1)
plan, out, where, number = sys.argv[1:]
features.group_size = cache.group_size = lambda spec, part: max(part, 6 // part * part)
features.filling_part = lambda job: 1
owner, name = {"record": (FeatureWriter, "_write"), "step": (LeanEngine, "train_step")}[where]
work, calls = getattr(owner, name), []
def counted(*arguments, **keywords):
    calls.append(1)
    if len(calls) > int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return work(*arguments, **keywords)
setattr(owner, name, counted)
room.fit(schema.load(Path(plan), schema.Plan), Path(out), quiet=True, save_every_s=0.0)
"""


@pytest.mark.parametrize("time_s", [None, 1e6])
@pytest.mark.parametrize(("where", "number"), [("record", 10), ("record", 31), ("step", 2), ("step", 6)])
def test_a_killed_run_ends_with_the_same_bits(
    where: str, number: int, time_s: float | None, plan, tmp_path: Path
) -> None:
    """Killed among the records of the training images (not at a whole group), of the validation images, and between
    two states of an epoch; prepared whole, or in stretches."""
    made = plan(*CACHED, time_s=time_s)
    schema.save(made, tmp_path / "plan.json")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = fit(made, whole, quiet=True)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "plan.json"), str(cut), where, str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    names = cached_files(cut)
    assert (
        names
        == {
            10: ["features-train-0.partial"],
            31: ["features-train-0", "features-val-0.partial"],
            2: ["features-train-0" if time_s is None else "features-train-0.partial"],
            6: ["features-train-0", "features-val-0"],
        }[number]
    )
    again = resume(cut, quiet=True)
    assert losses(cut) == losses(whole)
    first, second = ends(whole), ends(cut)
    assert all(first[name].equal(second[name]) for name in first)
    assert again.accuracy.last == result.accuracy.last
    assert cached_files(cut) == []


def test_a_cache_that_was_lost_is_filled_whole_for_an_epoch_in_another_order(plan, tmp_path: Path) -> None:
    made = plan(*CACHED, time_s=1e6)
    schema.save(made, tmp_path / "plan.json")
    fit(made, tmp_path / "whole", quiet=True)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "plan.json"), str(tmp_path / "cut"), "step", "6"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    (tmp_path / "cut" / "state" / "features-train-0").unlink()
    assert resume(tmp_path / "cut", quiet=True).stopped_by == "epochs"
    first, second = ends(tmp_path / "whole"), ends(tmp_path / "cut")
    assert all(first[name].equal(second[name]) for name in first)


def test_a_run_that_was_interrupted_over_its_validation_images_goes_on_in_the_same_process(
    plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = FeatureWriter.put

    def interrupted(self: FeatureWriter, start: int, features: np.ndarray) -> None:
        put(self, start, features)
        if self.path.name == "features-val-0":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(FeatureWriter, "put", interrupted)
    assert fit(plan(*CACHED), tmp_path / "run", quiet=True).stopped_by == "user"
    assert "features-val-0.partial" in cached_files(tmp_path / "run")
    monkeypatch.setattr(FeatureWriter, "put", put)
    assert resume(tmp_path / "run", quiet=True).stopped_by == "epochs"


def test_an_interrupted_run_keeps_its_features(plan, tmp_path: Path) -> None:
    made = plan(*CACHED, epochs=500)
    made = msgspec.structs.replace(made, caps=msgspec.structs.replace(made.caps, time_s=4.0))
    result = fit(made, tmp_path / "run", quiet=True)
    assert result.stopped_by == "time"
    assert cached_files(tmp_path / "run") == ["features-train-0", "features-val-0"]
    before = (tmp_path / "run" / "state" / "features-train-0").stat().st_mtime_ns
    later = msgspec.structs.replace(made.caps, time_s=result.time.total_s + 3.0)
    schema.save(msgspec.structs.replace(made, caps=later), tmp_path / "run" / "plan.json")
    again = resume(tmp_path / "run", quiet=True)
    assert len(losses(tmp_path / "run")) == again.work.images // 6
    assert (tmp_path / "run" / "state" / "features-train-0").stat().st_mtime_ns == before


def test_a_run_that_cannot_begin_leaves_no_features(plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = msgspec.structs.replace(plan(*CACHED), weights=str(tmp_path / "nothing.safetensors"))
    with pytest.raises(InputError, match=r"nothing\.safetensors"):
        fit(made, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


# -- where there is no room -------------------------------------------------------------------------------------------


def test_without_room_on_disk_the_frozen_blocks_run_every_step(plan, tmp_path: Path) -> None:
    made = plan(*(lever for lever in CACHED if lever != "frozen_weights=disk"), disk_bytes=50_000)
    assert made.feature_cache is None
    assert made.frozen_weights == "bf16"
    assert any("--disk raises the cap" in sentence for sentence in made.warnings)
    result = fit(made, tmp_path / "run", quiet=True)
    assert any("--disk raises the cap" in sentence for sentence in result.warnings)
    assert cached_files(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("method", "levers"),
    [
        ("full", ("saved_precision=int8", "optimizer_state=factored")),
        ("head", ("feature_cache=int8", "frozen_weights=int8", "frozen_precision=bf16")),
        ("last-2", ("optimizer=sgd", "saved_activations=recompute", "saved_precision=int4")),
        ("edgetune", ("trained_blocks=3", "k=1", "token_min=0.4", "token_max=0.6", "feature_cache=fp16")),
    ],
)
def test_levers_work_together_and_resume(method: str, levers: tuple[str, ...], plan, tmp_path: Path) -> None:
    """A run of four epochs, and the same one in two sittings."""
    made = plan("trainer=lean", *levers, method=method, epochs=4, augment=True)
    whole = fit(made, tmp_path / "whole", quiet=True)
    assert whole.stopped_by == "epochs"
    stopped = msgspec.structs.replace(made, epochs=2)
    fit(stopped, tmp_path / "cut", quiet=True)
    schema.save(made, tmp_path / "cut" / "plan.json")
    again = resume(tmp_path / "cut", quiet=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    first, second = ends(tmp_path / "whole"), ends(tmp_path / "cut")
    assert all(first[name].equal(second[name]) for name in first)
    assert again.work.images == whole.work.images
    assert schema.load(tmp_path / "cut" / "result.json", Result) == again


@pytest.mark.parametrize("failures", [1, 2])
def test_memory_that_runs_out_while_the_cache_is_filled_costs_nothing(
    failures: int, plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second group fails, once or twice; smaller ones do, and what was there stays."""
    whole = fit(plan(*CACHED), tmp_path / "whole", quiet=True)
    run, calls, sizes = FrozenPart.run, [0], []

    def failing(self: FrozenPart, x: torch.Tensor, part: int, *, all_tokens: bool = False) -> torch.Tensor:
        calls[0] += 1
        if 1 < calls[0] <= 1 + failures:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        sizes.append(len(x))
        return run(self, x, part, all_tokens=all_tokens)

    monkeypatch.setattr(FrozenPart, "run", failing)
    found = fit(plan(*CACHED), tmp_path / "run", quiet=True)
    assert found.stopped_by == "epochs"
    events = list(map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines()))
    assert [line["event"] for line in events if line["kind"] == "event"] == ["tightened"] * failures
    assert sizes[1] < sizes[0]
    assert found.work.images == whole.work.images
    assert found.accuracy.last == pytest.approx(whole.accuracy.last, abs=0.2)


def test_a_step_that_memory_ended_is_repeated_on_the_same_features(
    plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the memory in which the stream is written over, so they have to be read again."""
    entered: list[np.ndarray] = []
    step = LeanEngine._step

    def noted(self: LeanEngine, batch: Batch, *arguments: Any) -> Any:
        entered.append(batch.images.copy())
        return step(self, batch, *arguments)

    def fail_once(*arguments: Any, **keywords: Any) -> Any:
        failing.undo()
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(LeanEngine, "_step", noted)
    failing = pytest.MonkeyPatch()
    failing.setattr("edgetune.train.lean.engine.mlp_backward", fail_once)
    made = plan(*CACHED)
    result = fit(made, tmp_path / "run", quiet=True)
    assert result.stopped_by == "epochs"
    assert entered[0].ndim == 3
    assert np.array_equal(entered[0], entered[1])
    assert not np.array_equal(entered[1], entered[2])
    assert len(entered) == made.total_steps + 1
