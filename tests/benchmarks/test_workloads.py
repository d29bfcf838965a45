"""The workloads' folders: the same on every machine, and tuning sees no validation image."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.workloads import (
    FASHION_CLASSES,
    prepare_fashion,
    prepare_synthetic,
    prepare_w1,
    read_idx,
    split_for_tuning,
)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.png"))
    }


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.tobytes()))


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    """Twelve images of each class in each file, each pixel saying which one it is."""
    folder = tmp_path / "package" / "deep"
    folder.mkdir(parents=True)
    labels = np.tile(np.arange(10, dtype=np.uint8), 12)
    for prefix in ("train", "t10k"):
        write_idx(
            folder / f"{prefix}-images-idx3-ubyte.gz", np.arange(120, dtype=np.uint8).repeat(6).reshape(120, 2, 3)
        )
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return tmp_path / "package"


def test_fashion_is_drawn_alike_twice_and_otherwise_with_another_seed(idx, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare_fashion(idx, tmp_path / name, seed=seed, train_per_class=5, val_per_class=3)
    first = digests(tmp_path / "a")
    assert len(first) == 10 * (5 + 3)
    assert first == digests(tmp_path / "b")
    assert first != digests(tmp_path / "c")


def test_fashion_images_are_of_their_class(idx, tmp_path):
    prepare_fashion(idx, tmp_path / "data", train_per_class=5, val_per_class=3)
    for label, name in enumerate(FASHION_CLASSES):
        for path in (tmp_path / "data" / "train" / name).iterdir():
            pixels = np.asarray(Image.open(path))
            assert pixels.shape == (2, 3)
            assert pixels[0, 0] == int(path.stem)
            assert int(path.stem) % 10 == label


def test_the_tune_split_divides_the_training_images(idx, tmp_path):
    prepare_fashion(idx, tmp_path / "data", train_per_class=5, val_per_class=3)
    for name in ("tune", "again"):
        split_for_tuning(tmp_path / "data", tmp_path / name)
    assert digests(tmp_path / "tune") == digests(tmp_path / "again")
    train, val = ({path.name for path in (tmp_path / "tune" / part).rglob("*.png")} for part in ("train", "val"))
    assert (len(train), len(val)) == (40, 10)
    assert train | val == {path.name for path in (tmp_path / "data" / "train").rglob("*.png")}


def test_w1_takes_the_first_validation_images(tmp_path):
    for part, count in (("train", 260), ("val", 210)):
        for name in ("cat", "dog"):
            folder = tmp_path / "cifar" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index:03d}.png").write_text(f"{part} {name} {index}")
    prepare_w1(tmp_path / "cifar", tmp_path / "a")
    prepare_w1(tmp_path / "cifar", tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(list((tmp_path / "a" / "train" / "cat").iterdir())) == 250
    assert sorted(path.name for path in (tmp_path / "a" / "val" / "dog").iterdir())[-1] == "199.png"


def test_synthetic_classes_differ_in_colour(tmp_path):
    for name in ("a", "b"):
        prepare_synthetic(tmp_path / name, train=8, val=4, side=40)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(digests(tmp_path / "a")) == 12
    means = {}
    for folder in (tmp_path / "a" / "train").iterdir():
        images = [np.asarray(Image.open(path)) for path in folder.iterdir()]
        assert all(image.shape == (40, 40, 3) for image in images)
        means[folder.name] = np.mean(images, axis=(0, 1, 2))
    assert means["red"][0] > means["blue"][0] + 50
    assert means["green"][1] > means["red"][1] + 50


def test_a_filled_folder_is_refused(idx, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old.png").touch()
    with pytest.raises(SystemExit, match="not empty"):
        prepare_fashion(idx, tmp_path / "data", train_per_class=1, val_per_class=1)


def test_what_is_no_idx_file_is_named(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(SystemExit, match=r"x\.gz is no IDX file"):
        read_idx(tmp_path / "x.gz")
