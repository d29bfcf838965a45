"""Boards for tests: fixture trees, read in place or copied with every kernel-given number shuffled, with read errors.

hwmon, iio, thermal-zone, cooling-device and i2c-bus numbers move between kernel releases; `open_board(name, seed=1)`
gives the same board with other numbers, consistently in folder names and in links.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from edgetune.device.system import System

settings.register_profile("busy", deadline=None)  # a slow moment of the machine is no defect of a parser
settings.load_profile("busy")

FIXTURES = Path(__file__).parents[1] / "fixtures" / "devices"
NUMBERED = re.compile(r"^(hwmon|iio:device|thermal_zone|cooling_device|i2c-|)(\d+)(-00[0-9a-f]{2}|)$")
"""A folder named after a number the kernel hands out: hwmon4, iio:device0, thermal_zone3, i2c-1, 1-0040."""


class FaultySystem(System):
    """A fixture tree that answers some reads with an errno.

    A file `x.errno` beside (or instead of) `x` holds the errno's name. For a folder it closes everything below.
    `errnos` adds more of them: a path (or the end of one) to an errno's name.
    """

    def __init__(self, root: Path, errnos: Mapping[str, str] | None = None) -> None:
        super().__init__(root)
        self.errnos = dict(errnos or {})
        self.reads: list[str] = []

    def read_bytes(self, path: str) -> bytes:
        self.reads.append(path)
        name = self._errno(path)
        if name is not None:
            number = getattr(errno, name)
            raise OSError(number, os.strerror(number), str(self.path(path)))
        return super().read_bytes(path)

    def glob(self, pattern: str) -> list[str]:
        found = {
            path.removesuffix(".errno") for name in (pattern, pattern + ".errno") for path in System.glob(self, name)
        }
        return sorted((path for path in found if not self._closed(path)), key=lambda path: (len(path), path))

    def exists(self, path: str) -> bool:
        return super().exists(path) or super().exists(path + ".errno")

    def _errno(self, path: str) -> str | None:
        for suffix, name in self.errnos.items():
            if path == suffix or path.endswith("/" + suffix.lstrip("/")) or path.startswith(suffix.rstrip("/") + "/"):
                return name
        place = self.path(path)
        for candidate in (place, *place.parents):
            if candidate == self.root:
                return None
            side = candidate.with_name(candidate.name + ".errno")
            if side.exists():
                return side.read_text().strip()
        return None

    def _closed(self, path: str) -> bool:
        """Whether a folder above `path` can't be listed."""
        return any(self._errno(str(folder)) for folder in list(Path(path).parents)[:-1])


def copy_shuffled(source: Path, target: Path, seed: int) -> Path:
    """Copy a tree, renumbering hwmon, iio, thermal and i2c folders by one random map a kind, links included."""
    chance = random.Random(seed)
    numbers: dict[tuple[str, str], str] = {}
    taken: dict[str, set[str]] = {}

    def renumber(component: str) -> str:
        match = NUMBERED.match(component)
        if match is None or not (match[1] or match[3]):
            return component
        kind = "i2c" if match[1] in ("", "i2c-") else match[1]
        if (kind, match[2]) not in numbers:
            used = taken.setdefault(kind, {match[2]})
            new = chance.choice([str(number) for number in range(40) if str(number) not in used])
            used.add(new)
            numbers[kind, match[2]] = new
        return f"{match[1]}{numbers[kind, match[2]]}{match[3]}"

    def renamed(path: str) -> str:
        return "/".join(renumber(component) for component in path.split("/"))

    for folder, folders, files in os.walk(source):
        here = target / renamed(os.path.relpath(folder, source))
        here.mkdir(parents=True, exist_ok=True)
        for name in (*folders, *files):
            old, new = Path(folder, name), here / renumber(name)
            if old.is_symlink():
                new.symlink_to(renamed(os.readlink(old)))
            elif name in files:
                shutil.copyfile(old, new)
    return target


OpenBoard = Callable[..., FaultySystem]


@pytest.fixture
def open_board(tmp_path: Path) -> OpenBoard:
    """`open_board(name, seed=None, errnos=None, files=None)`: a fixture as a system.

    With a `seed` it is a copy with shuffled numbers; `files` (path to content, None removes) changes a copy; `errnos`
    (path, or the end of one, to an errno's name) makes reads fail.
    """
    opened = 0

    def open_it(
        name: str,
        *,
        seed: int | None = None,
        errnos: Mapping[str, str] | None = None,
        files: Mapping[str, str | bytes | None] | None = None,
    ) -> FaultySystem:
        nonlocal opened
        root = FIXTURES / name
        if not root.is_dir():
            raise FileNotFoundError(f"no fixture {name}")
        if seed is not None or files:
            opened += 1
            copy = tmp_path / f"{name}-{opened}"
            root = copy_shuffled(root, copy, seed) if seed is not None else shutil.copytree(root, copy, symlinks=True)
        for path, content in (files or {}).items():
            place = root / path.lstrip("/")
            if content is None:
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place)
                else:
                    place.unlink()
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content if isinstance(content, bytes) else content.encode())
        return FaultySystem(root, errnos)

    return open_it


@pytest.fixture(scope="session")
def board_names() -> list[str]:
    """Every fixture's name."""
    return sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())
