from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.data import workers as workers_module
from edgetune.data.folder import Sample, scan
from edgetune.data.loader import Batch, Loader
from edgetune.data.preprocess import read
from edgetune.errors import InputError

from .conftest import huge_png, write_folder

COMMON = {"image_size": 12, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "seed": 5, "augment": True}


def loader(samples, **changes):
    return Loader(samples, **{"batch_size": 4, **COMMON, **changes})


def same(first, second):
    first, second = list(first), list(second)
    return len(first) == len(second) and all(
        np.array_equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_batches_are_what_a_training_step_takes(pets):
    train = loader(scan(pets).train)
    batches = list(train.epoch(0))
    assert [len(batch.labels) for batch in batches] == [4, 4, 4, 1]
    assert (len(train), train.batches) == (13, 4)
    for batch in batches:
        assert batch.images.shape[1:] == (3, 12, 12)
        assert (batch.images.dtype, batch.labels.dtype) == (np.float32, np.int64)
        assert np.abs(batch.images).max() <= 1
        assert [train.samples[index].label for index in batch.indices] == batch.labels.tolist()
    assert sorted(np.concatenate([batch.indices for batch in batches])) == list(range(13))
    part = Batch(batches[0].images[:2], batches[0].labels[:2])
    assert part.indices is None


def test_drop_last(pets):
    train = loader(scan(pets).train, drop_last=True)
    assert [len(batch.labels) for batch in train.epoch(0)] == [4, 4, 4]
    assert train.batches == 3


def test_epochs_differ_and_repeat(pets):
    train = loader(scan(pets).train)
    assert same(train.epoch(1), train.epoch(1))
    assert not same(train.epoch(0), train.epoch(1))
    assert not same(train.epoch(0), loader(scan(pets).train, seed=6).epoch(0))


def test_augmentation_belongs_to_the_image_not_to_the_batch(pets):
    samples = scan(pets).train
    by_size = []
    for batch_size in (1, 4, 13):
        seen: dict[int, np.ndarray] = {}
        for batch in loader(samples, batch_size=batch_size).epoch(3):
            seen.update(zip(batch.indices.tolist(), batch.images, strict=True))
        by_size.append(seen)
    for index in range(13):
        assert np.array_equal(by_size[0][index], by_size[1][index])
        assert np.array_equal(by_size[0][index], by_size[2][index])


def test_evaluation_shows_the_centre_in_order(pets):
    samples = scan(pets).val
    val = loader(samples, augment=False, shuffle=False)
    batches = list(val.epoch(0))
    assert np.concatenate([batch.labels for batch in batches]).tolist() == [sample.label for sample in samples]
    first = (read(samples[0].path, 12) / 255 - 0.5) / 0.5
    assert np.abs(batches[0].images[0] - first.transpose(2, 0, 1)).max() < 1e-6
    assert val.paths() == [sample.path for sample in samples]


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 3), st.booleans(), st.booleans())
def test_workers_change_nothing(tmp_path_factory, workers, batch_size, start, damaged, augment):
    root = write_folder(tmp_path_factory.mktemp("data"), {"train/a": 6, "train/b": 5, "val/a": 1})
    if damaged:
        (root / "train/a/3.png").write_bytes(b"no image")
        (root / "train/b/2.png").write_bytes((root / "train/b/2.png").read_bytes()[:60])
    samples = scan(root).train
    alone = loader(samples, batch_size=batch_size, augment=augment)
    with loader(samples, batch_size=batch_size, augment=augment, workers=workers) as helped:
        for epoch in (0, 1):
            assert same(alone.epoch(epoch, start), helped.epoch(epoch, start))
        assert alone.warnings == helped.warnings
        assert alone.skipped == helped.skipped


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 9), st.integers(0, 3))
def test_resuming_goes_on_with_the_same_batches(tmp_path_factory, batch_size, start, epoch):
    root = write_folder(tmp_path_factory.mktemp("data"), {"train/a": 6, "train/b": 5, "val/a": 1})
    samples = scan(root).train
    whole = list(loader(samples, batch_size=batch_size).epoch(epoch))
    assert same(whole[start:], loader(samples, batch_size=batch_size).epoch(epoch, start))


def test_unreadable_images_are_named_once_skipped_and_counted(pets):
    (pets / "train/cat/2.png").write_bytes(b"")
    (pets / "train/dog/4.png").write_bytes((pets / "train/dog/4.png").read_bytes()[:70])
    train = loader(scan(pets).train)
    for epoch in range(2):
        batches = list(train.epoch(epoch))
        assert sum(len(batch.labels) for batch in batches) == 11
        seen = [train.samples[index].path for batch in batches for index in batch.indices]
        assert seen == train.paths(epoch)
    assert train.skipped == 2
    assert len(train.warnings) == 2
    assert any("cat/2.png was skipped: not an image." in warning for warning in train.warnings)


def test_a_batch_of_unreadable_images_is_left_out(pets):
    for name in ("cat/2.png", "dog/4.png"):
        (pets / "train" / name).write_bytes(b"")
    train = loader(scan(pets).train, batch_size=1)
    batches = list(train.epoch(0))
    assert len(batches) == 11
    assert len({batch.number for batch in batches}) == 11
    assert max(batch.number for batch in batches) <= 12
    later = batches[5]
    assert same([later], list(loader(scan(pets).train, batch_size=1).epoch(0, later.number))[:1])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_class_that_becomes_empty_ends_training(pets, workers):
    for path in (pets / "train/dog").iterdir():
        path.write_bytes(b"broken")
    with (
        loader(scan(pets).train, workers=workers) as train,
        pytest.raises(InputError, match=r"No image in .*train/dog can be read .*not an image"),
    ):
        list(train.epoch(0))


def test_a_class_that_can_not_be_evaluated_is_a_warning_and_none_at_all_an_error(pets):
    for path in (pets / "val/dog").iterdir():
        path.write_bytes(b"broken")
    val = loader(scan(pets).val, augment=False, shuffle=False)
    assert sum(len(batch.labels) for batch in val.epoch(0)) == 3
    assert any("val/dog could be read; the accuracy of that class is unknown" in warning for warning in val.warnings)
    for path in (pets / "val/cat").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"No image of .*val can be read"):
        list(loader(scan(pets).val, augment=False, shuffle=False).epoch(0))


def test_many_unreadable_images_are_not_all_named(tmp_path):
    root = write_folder(tmp_path, {"train/a": 1, "train/b": 1, "val/a": 1})
    for index in range(30):
        (root / f"train/a/x{index}.jpg").write_bytes(b"broken")
    train = loader(scan(root).train)
    list(train.epoch(0))
    assert train.skipped == 30
    assert len(train.warnings) == 21
    assert train.warnings[-1].startswith("30 unreadable images were skipped")


def test_workers_start_late_and_stay(pets):
    with loader(scan(pets).train, workers=2) as train:
        pool = train._workers
        assert not pool._started
        list(train.epoch(0))
        pids = [worker.process.pid for worker in pool._started]
        list(train.epoch(1))
        assert [worker.process.pid for worker in pool._started] == pids
        processes = [worker.process for worker in pool._started]
    assert all(process.poll() is not None for process in processes)
    assert same(loader(scan(pets).train).epoch(0), train.epoch(0)), "a closed loader starts anew"
    train.close()


def test_a_killed_worker_loses_nothing(pets):
    samples = scan(pets).train
    with loader(samples, workers=1, batch_size=2) as train:
        batches = train.epoch(0)
        first = next(batches)
        train._workers._started[0].process.kill()
        train._workers._started[0].process.wait()
        assert same([first, *batches], loader(samples, batch_size=2).epoch(0))
        assert any("A decoding process ended" in warning for warning in train.warnings)
        assert same(train.epoch(1), loader(samples, batch_size=2).epoch(1))


def test_a_worker_whose_answer_was_not_read_is_not_asked_again(pets, monkeypatch):
    """Memory ran out for its pixels: they would be taken for the next answer."""
    samples = scan(pets).train
    with loader(samples, workers=1, batch_size=2) as train:
        batches = train.epoch(0)
        next(batches)
        with monkeypatch.context() as patched:
            patched.setattr(workers_module, "np", SimpleNamespace(empty=_no_memory, uint8=np.uint8))
            with pytest.raises(MemoryError):
                list(batches)
        assert same(train.epoch(0), loader(samples, batch_size=2).epoch(0))


def _no_memory(*_):
    raise MemoryError


def test_an_abandoned_epoch_leaves_the_workers_usable(pets):
    samples = scan(pets).train
    with loader(samples, workers=2, batch_size=1) as train:
        next(train.epoch(0))
        assert same(train.epoch(1), loader(samples, batch_size=1).epoch(1))


SCRIPT = """
import sys, time
from edgetune.data.folder import scan
from edgetune.data.loader import Loader
train = Loader(scan({root!r}).train, batch_size=2, image_size=12, mean=(0, 0, 0), std=(1, 1, 1), augment=True, seed=0,
               workers=2)
epoch = train.epoch(0)
next(epoch)
print(*(worker.process.pid for worker in train._workers._started), flush=True)
{after}
"""


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids, within_s=5.0):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not any(running(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL, None])
def test_no_worker_outlives_its_parent(pets, end):
    """No guard around the script's main part, Ctrl-C to the whole group, a kill, or simply forgetting to close."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(root=str(pets), after="time.sleep(60)" if end else "")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        # a shell that runs the tests in the background has SIGINT ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    if end is not None:
        os.killpg(process.pid, end)
    _, errors = process.communicate(timeout=30)
    assert gone(pids)
    assert errors.count("Traceback") <= (end == signal.SIGINT), errors
    if end is None:
        assert process.returncode == 0, errors


def test_an_image_too_large_to_decode_is_named_and_skipped(pets):
    (pets / "train/cat/scan.png").write_bytes(huge_png(20_000))
    train = loader(scan(pets).train)
    assert sum(len(batch.labels) for batch in train.epoch(0)) == 13
    assert "scan.png was skipped: too many pixels" in train.warnings[0]


def test_a_missing_file_is_skipped(pets):
    samples = [*scan(pets).train, Sample(str(pets / "train/cat/gone.png"), 0)]
    train = loader(samples)
    assert sum(len(batch.labels) for batch in train.epoch(0)) == 13
    assert "No such file" in train.warnings[0]
