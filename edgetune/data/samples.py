"""The data that ships with edgetune, so that it can be tried on real images with no network."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

from edgetune.errors import InputError, StorageError
from edgetune.resources import resource_folder

SAMPLES = {"digits": "1,797 handwritten digits, 8 × 8 pixels, ten classes (UCI, CC BY 4.0)"}


def unpack(name: str, folder: Path, *, per_class: int | None = None, classes: int | None = None) -> Path:
    """Write a bundled data set as an image folder (`train/<class>/*`, `val/<class>/*`), whole or not at all.

    Args:
        name: a key of `SAMPLES`.
        folder: where to; left as it is if it holds anything already.
        per_class: images of each class and part, at most; None: all.
        classes: of them the first ones only; None: all.

    Returns:
        `folder`.

    Raises:
        InputError: there is no such data set, or `folder` is a file.
        StorageError: the disk is full or can't be written to.
    """
    if name not in SAMPLES:
        raise InputError(f"{name!r} is no bundled data set; there is {', '.join(SAMPLES)}.")
    if folder.exists():
        if not folder.is_dir():
            raise InputError(f"{folder} is a file; choose another folder for the {name} images.")
        if any(folder.iterdir()):
            return folder
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        with zipfile.ZipFile(resource_folder("bundled") / f"{name}.zip") as archive:
            archive.extractall(temporary, _chosen(archive.namelist(), per_class, classes))
        temporary.chmod(0o777 & ~_umask())  # mkdtemp's is private
        os.replace(temporary, folder)  # takes the place of an empty folder too
    except OSError as error:
        raise StorageError(
            f"{folder} could not be written ({error.strerror or error}); free some space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _chosen(names: list[str], per_class: int | None, classes: int | None) -> list[str]:
    """Of an archive's `part/class/file` names those to unpack."""
    images = sorted(name for name in names if name.count("/") == 2 and not name.endswith("/"))
    wanted = set(sorted({name.split("/")[1] for name in images})[:classes])
    taken: Counter[str] = Counter()
    chosen = []
    for name in images:
        place, label = name.rpartition("/")[0], name.split("/")[1]
        if label in wanted and (per_class is None or taken[place] < per_class):
            taken[place] += 1
            chosen.append(name)
    return chosen


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
