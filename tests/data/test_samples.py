from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetune.data.folder import scan
from edgetune.data.samples import unpack
from edgetune.errors import EdgetuneError, InputError
from edgetune.resources import resource_folder


def test_digits(tmp_path):
    folder = scan(unpack("digits", tmp_path / "digits"))
    assert folder.classes == [str(digit) for digit in range(10)]
    assert (len(folder.train), len(folder.val), folder.split) == (1437, 360, "val")
    assert set(Counter(sample.label for sample in folder.val).values()) == {36}
    assert folder.warnings == []
    means = np.zeros((10, 8, 8))
    for path, label in folder.train:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            means[label] += np.asarray(image)
    means /= means.sum((1, 2), keepdims=True)
    right = 0
    for path, label in folder.val:
        with Image.open(path) as image:
            pixels = np.asarray(image) / np.asarray(image).sum()
        right += ((means - pixels) ** 2).sum((1, 2)).argmin() == label
    assert right > 0.8 * 360, "the labels are those of the images: a nearest mean finds most"


def test_a_few_of_each_class_will_do(tmp_path):
    folder = scan(unpack("digits", tmp_path / "few", per_class=5, classes=2))
    assert folder.classes == ["0", "1"]
    assert set(Counter(sample.label for sample in folder.train).values()) == {5}
    assert set(Counter(sample.label for sample in folder.val).values()) == {5}


def test_digits_are_small_and_carry_their_licence():
    bundled = resource_folder("bundled")
    assert (bundled / "digits.zip").stat().st_size < 1_000_000
    assert "CC BY 4.0" in (bundled / "digits.md").read_text()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    assert unpack("digits", tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "digits").mkdir()
    assert len(list(unpack("digits", tmp_path / "digits").glob("*/*/*.png"))) == 1797


def test_unknown_name_and_file_in_the_way(tmp_path):
    with pytest.raises(InputError, match="no bundled data set"):
        unpack("faces", tmp_path / "x")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        unpack("digits", tmp_path / "file")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(self, folder, members):
        (Path(folder) / "half").write_text("written")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(EdgetuneError, match="No space left"):
        unpack("digits", tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []
