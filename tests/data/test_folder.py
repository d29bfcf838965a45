from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.data.folder import natural_key, scan, scan_for_evaluation
from edgetune.errors import InputError

from .conftest import touch


def names(samples):
    return [f"{Path(sample.path).parent.name}/{Path(sample.path).name}={sample.label}" for sample in samples]


def images(root, **counts):
    return touch(root, *(f"{name}/{index}.jpg" for name, count in counts.items() for index in range(count)))


def test_scanning_imports_no_numpy_no_pillow_no_torch():
    code = "import sys, edgetune.data.folder; sys.exit(any(m in sys.modules for m in ('numpy', 'PIL', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_train_and_val(tmp_path):
    touch(tmp_path, "train/b/1.JPG", "train/b/10.png", "train/b/2.webp", "train/a/x.jpeg", "val/b/1.bmp", "val/a/1.tif")
    folder = scan(tmp_path)
    assert folder.classes == ["a", "b"]
    assert names(folder.train) == ["a/x.jpeg=0", "b/1.JPG=1", "b/2.webp=1", "b/10.png=1"]
    assert names(folder.val) == ["a/1.tif=0", "b/1.bmp=1"]
    assert folder.split == "val"
    assert folder.warnings == []


def test_validation_is_the_other_spelling(tmp_path):
    images(tmp_path / "train", a=2, b=2)
    images(tmp_path / "validation", a=1, b=1)
    assert scan(tmp_path).split == "validation"
    images(tmp_path / "val", a=2, b=1)
    folder = scan(tmp_path)
    assert (folder.split, len(folder.val)) == ("val", 3)
    assert "both val/ and validation/" in folder.warnings[0]


@pytest.mark.parametrize("where", ["", "train"])
def test_without_val_a_fifth_of_each_class_is_held_out(tmp_path, where):
    images(tmp_path / where, a=10, b=4, c=2)
    folder = scan(tmp_path, seed=3)
    assert [sum(s.label == label for s in folder.val) for label in range(3)] == [2, 1, 1]
    assert not {s.path for s in folder.val} & {s.path for s in folder.train}
    assert len(folder.val) + len(folder.train) == 16
    assert folder.split == f"split 20 % of {where or 'the images'}, seed 3"
    assert scan(tmp_path, seed=3) == folder
    assert {s.path for s in scan(tmp_path, seed=4).val} != {s.path for s in folder.val}


def test_test_is_never_listed_and_leaves_a_split_of_train(tmp_path):
    images(tmp_path / "train", a=5, b=5)
    images(tmp_path / "test", a=9, b=9, unknown=9)
    folder = scan(tmp_path)
    assert folder.split.startswith("split 20 % of train")
    assert not any("test" in Path(sample.path).parts for sample in folder.train + folder.val)


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 500), min_size=2, max_size=60), st.integers(0, 5), st.integers(501, 900))
def test_a_photo_more_hardly_moves_the_split(tmp_path_factory, numbers, seed, extra):
    root = tmp_path_factory.mktemp("split")
    touch(root, "other/0.jpg", "other/1.jpg", *(f"a/{number}.jpg" for number in numbers))

    def held():
        return {s.path for s in scan(root, seed).val if s.label == 0}

    before = held()
    assert len(before) == max(1, round(0.2 * len(numbers)))
    touch(root, f"a/{extra}.jpg")
    assert len(before - held()) <= 1


def test_a_class_may_be_called_train_or_test(tmp_path):
    images(tmp_path, train=3, bus=3, test=3)
    assert scan(tmp_path).classes == ["bus", "test", "train"]


def test_classes_and_files_are_in_natural_order(tmp_path):
    images(tmp_path, class10=11, class2=2, Class1=2)
    folder = scan(tmp_path)
    assert folder.classes == ["Class1", "class2", "class10"]
    last = [int(Path(s.path).stem) for s in folder.train if s.label == 2]
    assert last == sorted(last)


@given(st.lists(st.text(max_size=8), max_size=8))
def test_natural_key_orders_any_names(texts):
    backwards = texts[::-1]
    assert sorted(texts, key=natural_key) == sorted(backwards, key=natural_key)


def test_what_is_no_image_is_counted(tmp_path):
    images(tmp_path, a=2, b=2)
    touch(tmp_path, "a/notes.txt", "a/Thumbs.db", "a/._1.jpg", "b/IMG_1.HEIC", "b/README", "a/inner/3.jpg", "stray.jpg")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / ".git").mkdir()
    folder = scan(tmp_path)
    assert len(folder.train + folder.val) == 4
    (warning,) = folder.warnings
    assert "7 entries" in warning
    assert "1 hidden" in warning
    assert "1 folders" in warning
    assert "convert .heic photos" in warning


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        scan(path)
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence
    assert caught.value.exit_code == 2


def test_missing_folder(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "does not exist")


def test_a_file_instead_of_a_folder(tmp_path):
    touch(tmp_path, "data.tar")
    refused(tmp_path / "data.tar", "data.tar", "unpack")


def test_empty_folder(tmp_path):
    refused(tmp_path, "no class folders")
    (tmp_path / "train").mkdir()
    refused(tmp_path, "train has no class folders")


def test_one_class(tmp_path):
    refused(images(tmp_path, cat=3), "one class", "'cat'")


def test_empty_class(tmp_path):
    images(tmp_path, cat=3)
    (tmp_path / "dog").mkdir()
    refused(tmp_path, "dog", "no image", "it is empty")
    touch(tmp_path, "dog/inner/1.jpg")
    refused(tmp_path, "dog", "1 other entries")


def test_val_class_that_train_lacks(tmp_path):
    images(tmp_path / "train", a=2, b=2)
    images(tmp_path / "val", a=1, c=1)
    refused(tmp_path, "val/c", "train lacks")


def test_val_without_train(tmp_path):
    refused(images(tmp_path / "val", a=2, b=2).parent, "val/ but no train/")


def test_val_without_images(tmp_path):
    images(tmp_path / "train", a=2, b=2)
    (tmp_path / "val" / "a").mkdir(parents=True)
    refused(tmp_path, "val holds no images")


def test_val_may_lack_a_class(tmp_path):
    images(tmp_path / "train", a=2, b=2)
    images(tmp_path / "val", a=1)
    folder = scan(tmp_path)
    assert names(folder.val) == ["a/0.jpg=0"]
    assert "no image of 1 of 2 classes (b)" in folder.warnings[0]


def test_a_single_image_trains(tmp_path):
    folder = scan(images(tmp_path, a=1, b=5))
    assert [s.label for s in folder.val] == [1]
    assert "single image" in folder.warnings[0]
    refused(images(tmp_path / "other", a=1, b=1), "one image per class")


def test_class_name_that_is_not_utf8(tmp_path):
    images(tmp_path, a=2)
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    refused(tmp_path, "not UTF-8", "rename")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folder(tmp_path):
    images(tmp_path, a=2, b=2)
    (tmp_path / "a").chmod(0)
    try:
        refused(tmp_path, "can't be read", "permissions")
    finally:
        (tmp_path / "a").chmod(0o755)


def test_evaluation_prefers_test_then_val_then_everything(tmp_path):
    classes = ["a", "b"]
    images(tmp_path / "train", a=5, b=5)
    held = scan(tmp_path, 1).val
    assert scan_for_evaluation(tmp_path, classes, split_seed=1)[0] == held
    assert len(scan_for_evaluation(tmp_path, classes)[0]) == 10
    images(tmp_path / "val", a=2, b=2)
    assert scan_for_evaluation(tmp_path, classes, split_seed=1)[1] == "val"
    images(tmp_path / "test", b=1)
    samples, part, warnings = scan_for_evaluation(tmp_path, classes)
    assert (names(samples), part) == (["b/0.jpg=1"], "test")
    assert "no image of 1 of 2 classes" in warnings[0]
    assert names(scan_for_evaluation(images(tmp_path / "flat", b=1), classes)[0]) == ["b/0.jpg=1"]


def test_evaluation_refuses_a_class_the_model_does_not_know(tmp_path):
    images(tmp_path, a=1, zebra=1)
    with pytest.raises(InputError, match="zebra is a class that the model does not know"):
        scan_for_evaluation(tmp_path, ["a", "b"])


def test_a_file_that_no_record_could_name_is_left_out_and_a_circle_of_links_is_named(tmp_path):
    images(tmp_path, a=3, b=3)
    with open(os.fsencode(tmp_path / "a") + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"x")
    (tmp_path / "b" / "circle.jpg").symlink_to(tmp_path / "b" / "circle.jpg")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    folder = scan(tmp_path)
    names = {Path(sample.path).name for sample in folder.train + folder.val}
    assert "circle.jpg" in names  # reported as unreadable, by name
    assert all(name.isascii() for name in names)
    assert any("1 with names that are not UTF-8" in warning for warning in folder.warnings)
