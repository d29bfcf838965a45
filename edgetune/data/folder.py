"""Which images there are, and what they show: `train/<class>/*` with `val/<class>/*`, or a flat `<class>/*`.

Listings only: no image is opened, so that planning over a slow SD card takes moments. What can't be decoded is found
out by the loader, when it gets there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgetune.errors import InputError

IMAGE_EXTENSIONS = frozenset(
    (".avif", ".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp")
)
VAL_SHARE = 0.2
_VAL_NAMES = ("val", "validation")
_NATURAL = re.compile(r"(\d+)")


class Sample(NamedTuple):
    """One labelled image. The path is text, which takes a third of a `Path`'s memory."""

    path: str
    label: int


def mean_file_bytes(samples: Sequence[Sample], most: int = 64) -> float | None:
    """Mean size of the files, of `most` of them spread evenly; None where none can be looked at. Opens nothing."""
    sizes = []
    for sample in samples[:: max(1, len(samples) // most)]:
        try:
            sizes.append(os.stat(sample.path).st_size)
        except OSError:
            continue
    return sum(sizes) / len(sizes) if sizes else None


class ImageFolder(NamedTuple):
    """The images of a data set: `train` learns, `val` selects. `split` says where `val` comes from."""

    path: Path
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    split: str
    warnings: list[str]


def scan(path: Path | str, seed: int = 0) -> ImageFolder:
    """List an image folder.

    `test/` is never looked into. Without `val/` or `validation/`, a fifth of each class's training images is held out:
    those whose name, hashed with the seed, comes first, so that adding a photo moves hardly any other.

    Args:
        path: holds `train/<class>/*` and, if there are validation images, `val/<class>/*` or `validation/<class>/*`;
            or `<class>/*`.
        seed: of the split.

    Raises:
        InputError: the folder is missing or empty, has one class or an empty one, or `val` has a class `train` lacks.
    """
    root = Path(path)
    ignored = _Ignored()
    parts = _subfolders(root, "DATA")
    has_train = _is_train(root, parts)
    train_root = root / "train" if has_train else root
    if not has_train:
        _refuse_parts_without_train(root, parts)
    by_class = _read_classes(train_root, ignored)
    classes = list(by_class)
    if len(classes) == 1:
        raise InputError(
            f"{train_root} has one class, {classes[0]!r}; a classifier needs a folder for each of two or more."
        )
    for name, files in by_class.items():
        if not files:
            raise InputError(
                f"{train_root / name} holds no image ({ignored.inside(train_root / name)}); put some directly in it or"
                " remove the folder."
            )
    warnings = []
    val_names = [name for name in _VAL_NAMES if has_train and name in parts]
    if val_names:
        if len(val_names) > 1:
            warnings.append(f"{root} has both val/ and validation/; val/ is used.")
        train = [Sample(file, label) for label, files in enumerate(by_class.values()) for file in files]
        val = _read_val(root / val_names[0], train_root, classes, ignored, warnings)
        split = val_names[0]
    else:
        train, val = _split(by_class, train_root, seed, warnings)
        split = f"split {VAL_SHARE * 100:.0f} % of {'train' if has_train else 'the images'}, seed {seed}"
    return ImageFolder(root, classes, train, val, split, warnings + ignored.warnings(root))


def scan_for_evaluation(
    path: Path | str, classes: Sequence[str], split_seed: int | None = None
) -> tuple[list[Sample], str, list[str]]:
    """Labelled images to measure a trained model on: `test/` if there is one, else `val/`, else `<class>/*`.

    Args:
        path: an image folder as `scan` takes it, or one with `test/<class>/*`.
        classes: the model's; a folder may lack some of them.
        split_seed: for the very folder a model was trained on: where it has neither `test` nor `val`, take the images
            that `scan` with this seed held out. Without it all images are taken.

    Returns:
        The images, the name of what they are ("test", "val", …), and warnings.

    Raises:
        InputError: the folder is missing or empty, or has a class the model doesn't know.
    """
    root = Path(path)
    parts = _subfolders(root, "DATA")
    ignored, warnings = _Ignored(), list[str]()
    name = next((name for name in ("test", *_VAL_NAMES) if name in parts and _has_subfolders(root / name)), None)
    if name is None and split_seed is not None:
        folder = scan(root, split_seed)
        if folder.classes != list(classes):
            raise InputError(f"{root} has other classes than the model; give the folder it was trained on.")
        return folder.val, folder.split, folder.warnings
    if name is None and _is_train(root, parts):
        name = "train"
    samples = _read_val(root / name if name else root, None, list(classes), ignored, warnings)
    return samples, name or "all images", warnings + ignored.warnings(root)


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Sort key under which `class2` comes before `class10`."""
    pieces = _NATURAL.split(text.casefold())
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)], text


class _Ignored:
    """What was passed over: files that are no images, hidden ones, folders within classes."""

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()
        self._by_folder: Counter[str] = Counter()

    def add(self, folder: Path, kind: str) -> None:
        self._kinds[kind] += 1
        self._by_folder[str(folder)] += 1

    def inside(self, folder: Path) -> str:
        return f"{self._by_folder[str(folder)]} other entries" if self._by_folder[str(folder)] else "it is empty"

    def warnings(self, root: Path) -> list[str]:
        if not self._kinds:
            return []
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._kinds.most_common(6))
        advice = " (convert .heic photos to JPEG to use them)" if ".heic" in self._kinds else ""
        return [f"{root}: {sum(self._kinds.values())} entries that are no images were ignored: {kinds}{advice}."]


def _subfolders(folder: Path, what: str) -> list[str]:
    """Names of the folders in `folder`, hidden ones left out."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".") and _is(entry.is_dir)]
    except FileNotFoundError:
        raise InputError(f"{what} {folder} does not exist; check the path.") from None
    except NotADirectoryError:
        raise InputError(f"{what} {folder} is a file; unpack it, and give the folder with train/<class>/*.") from None
    except OSError as error:
        raise InputError(f"{what} {folder} can't be read ({error.strerror}); check its permissions.") from None


def _has_subfolders(folder: Path) -> bool:
    return bool(_subfolders(folder, "folder"))


def _is_train(root: Path, parts: Sequence[str]) -> bool:
    """Whether `train` is the training part, and not a class of pictures of trains."""
    return "train" in parts and (_has_subfolders(root / "train") or {*parts} <= {"train", "test", *_VAL_NAMES})


def _refuse_parts_without_train(root: Path, parts: Sequence[str]) -> None:
    """`val/cat/1.jpg` without `train/` is a slip; a flat folder may well have a class called `test`."""
    for name in (*_VAL_NAMES, "test"):
        if name in parts and _has_subfolders(root / name):
            raise InputError(f"{root} has {name}/ but no train/; put the training images in {root / 'train'}/<class>/.")


def _read_classes(folder: Path, ignored: _Ignored) -> dict[str, list[str]]:
    """Image files by class, classes and files in natural order."""
    names = sorted(_subfolders(folder, "folder"), key=natural_key)
    if not names:
        raise InputError(f"{folder} has no class folders; put the images in {folder}/<class>/.")
    for name in names:
        if not is_utf8(name):
            raise InputError(f"{folder} has a class folder whose name is not UTF-8 ({name!a}); rename it.")
    return {name: _read_files(folder / name, ignored) for name in names}


def is_utf8(name: str) -> bool:
    """Whether a file's name is text; the system allows any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is(kind: Callable[[], bool]) -> bool:
    """What a folder's entry is; a link that leads in a circle is nothing."""
    try:
        return kind()
    except OSError:
        return False


def _read_files(folder: Path, ignored: _Ignored) -> list[str]:
    """Paths of the image files directly in `folder`, in natural order."""
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                extension = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith("."):
                    ignored.add(folder, "hidden")
                elif not is_utf8(entry.name):  # no record could name it
                    ignored.add(folder, "with names that are not UTF-8")
                elif _is(entry.is_dir):
                    ignored.add(folder, "folders")
                elif extension not in IMAGE_EXTENSIONS:
                    ignored.add(folder, extension or "without extension")
                elif _is(entry.is_file) or entry.is_symlink():  # a dangling link is reported as unreadable, by name
                    names.append(entry.name)
                else:
                    ignored.add(folder, "not regular files")
    except OSError as error:
        raise InputError(f"{folder} can't be read ({error.strerror}); check its permissions.") from None
    return [os.path.join(folder, name) for name in sorted(names, key=natural_key)]


def _read_val(
    folder: Path, train: Path | None, classes: list[str], ignored: _Ignored, warnings: list[str]
) -> list[Sample]:
    """Images of known classes only."""
    by_class = _read_classes(folder, ignored)
    for name in by_class:
        if name not in classes:
            lacks = f"{train} lacks" if train else "the model does not know"
            raise InputError(f"{folder / name} is a class that {lacks}; add it there or remove it here.")
    missing = [name for name in classes if not by_class.get(name)]
    samples = [Sample(file, label) for label, name in enumerate(classes) for file in by_class.get(name, [])]
    if not samples:
        raise InputError(f"{folder} holds no images; put some in its class folders or remove it.")
    if missing:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        warnings.append(f"{folder} has no image of {len(missing)} of {len(classes)} classes ({shown}).")
    return samples


def _split(
    by_class: dict[str, list[str]], folder: Path, seed: int, warnings: list[str]
) -> tuple[list[Sample], list[Sample]]:
    """Hold out a share of each class, at least one image and never the last one."""
    train: list[Sample] = []
    val: list[Sample] = []
    for label, (name, files) in enumerate(by_class.items()):
        ranked = sorted(files, key=lambda file: _rank(seed, name, os.path.basename(file)))
        held = set(ranked[: max(1, round(VAL_SHARE * len(files)))] if len(files) > 1 else [])
        if not held:
            warnings.append(f"{folder / name} has a single image, which trains; no image of it validates.")
        for file in files:
            (val if file in held else train).append(Sample(file, label))
    if not val:
        raise InputError(
            f"{folder} has one image per class, which leaves none to validate with; add some, or a val/ folder."
        )
    return train, val


def _rank(seed: int, class_name: str, file_name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{class_name}/{file_name}".encode(errors="surrogateescape"), digest_size=8).digest()
