"""Broken machines: garbage in every file, every errno, closed folders. No crash, no zero for unknown, the file is named."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.device.board import identify_entry
from edgetune.device.catalogue import load_catalogue
from edgetune.device.memory import read_memory
from edgetune.device.modes import read_modes
from edgetune.device.reading import parse_number, read_number
from edgetune.device.system import System
from edgetune.device.throttle import advice, delta, read_throttle, throttled
from tests.device.conftest import FIXTURES, OpenBoard
from tests.pace import slowness

NAMES = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())


class Broken(System):
    """A fixture whose every file answers `answer`: bytes, or an errno."""

    def __init__(self, root: Path, answer: bytes | int) -> None:
        super().__init__(root, run=lambda command, timeout_s: self._command())
        self.answer = answer

    def read_bytes(self, path: str) -> bytes:
        if not self.path(path).exists():
            return super().read_bytes(path)
        if isinstance(self.answer, int):
            raise OSError(self.answer, os.strerror(self.answer), path)
        return self.answer

    def _command(self) -> str | None:
        return None if isinstance(self.answer, int) else self.answer.decode(errors="replace")


def read_all(system: System) -> dict[str, Any]:
    board, entry = identify_entry(system)
    memory, modes, throttle = read_memory(system, entry), read_modes(system), read_throttle(system)
    advice(system, board, entry, memory, modes, throttle)
    throttled(delta(throttle, throttle))
    return {
        "board": msgspec.to_builtins(board),
        "memory": msgspec.to_builtins(memory),
        "modes": msgspec.to_builtins(modes),
        "throttle": throttle,
    }


def assert_nothing_is_known(found: dict[str, Any]) -> None:
    """No figure at all: in particular no zero."""
    known = {key: value for key, value in found["memory"].items() if value is not None}
    known.pop("unified", None)  # of the board's family
    known.pop("zram_bytes", None)  # a list of swaps without zram is a list without zram
    assert known.keys() <= {"limit_enforced"}, known
    modes = {key: value for key, value in found["modes"].items() if value not in (None, [])}
    assert modes.keys() <= {"governor"}, modes
    assert [key for key, value in found["throttle"].items() if value is not None] == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0\0\0\0",
        b"\xff\xfe\xfd\x00\x80" * 50,
        b"\n" * 100,
        b"not a number at all",
        b"nan",
        b"1e9 C",
        b"0x",
        b"--5",
        b"\xd9\xa3",
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", NAMES)
def test_garbage_in_every_file(name: str, garbage: bytes) -> None:
    system = Broken(FIXTURES / name, garbage)
    assert_nothing_is_known(read_all(system))
    if (FIXTURES / name / "proc/meminfo").exists():
        assert any("/proc/meminfo" in sentence for sentence in system.warnings)


@pytest.mark.parametrize("number", [errno.ENODATA, errno.EAGAIN, errno.EIO, errno.EACCES, errno.ENODEV, errno.EINVAL])
@pytest.mark.parametrize("name", NAMES)
def test_an_errno_from_every_file(name: str, number: int) -> None:
    system = Broken(FIXTURES / name, number)
    assert_nothing_is_known(read_all(system))
    assert len(system.warnings) == len(set(system.warnings))
    if number in (errno.EIO, errno.EACCES) and (FIXTURES / name / "proc/meminfo").exists():
        assert any("/proc/meminfo can't be read" in sentence for sentence in system.warnings)


@pytest.mark.parametrize("name", ["orin-nano-super-jp6", "rpi5", "container-v2", "nano-jp4", "x86-rapl"])
def test_each_file_on_its_own_may_break_and_is_named(open_board: OpenBoard, name: str) -> None:
    whole = open_board(name)
    read_all(whole)
    paths = sorted({path for path in whole.reads if whole.path(path).is_file() and path[:5] != "/cmd/"})
    assert len(paths) > 20
    for path in paths:
        system = open_board(name, errnos={path: "EIO"})
        read_all(system)
        assert any(path in sentence for sentence in system.warnings), path


@pytest.mark.parametrize(
    "folder", ["/sys/class/hwmon", "/sys/class/thermal", "/sys/fs/cgroup", "/sys/devices", "/proc", "/etc", "/sys"]
)
def test_closed_folders(open_board: OpenBoard, folder: str) -> None:
    for name in ("orin-nano-super-jp6", "rpi4", "x86-rapl"):
        system = open_board(name, errnos={folder: "EACCES"})
        assert read_all(system)["board"]["family"]


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "proc/meminfo").mkdir(parents=True)
    (tmp_path / "sys/class/hwmon/hwmon0/name").mkdir(parents=True)
    system = System(tmp_path)
    assert_nothing_is_known(read_all(system))
    assert any("/proc/meminfo" in sentence for sentence in system.warnings)


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    assert read_all(System(tmp_path / "nowhere"))["board"]["family"] == "generic"


def test_links_that_lead_nowhere_or_in_circles(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").symlink_to("meminfo")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nvpmodel.conf").symlink_to("/etc/gone.conf")
    assert_nothing_is_known(read_all(System(tmp_path)))


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_random_bytes_in_every_file(raw: bytes) -> None:
    for name in ("orin-nano-super-jp6", "rpi5"):
        read_all(Broken(FIXTURES / name, raw))


@given(st.text(max_size=45))
def test_numbers(text: str) -> None:
    number = parse_number(text)
    assert number is None or int(text.strip("\0 \t\r\n")) == number


@pytest.mark.parametrize("text", ["", "1_000", "٣", "12a", "9" * 50, "1.0", "0x10", "+-3"])
def test_what_is_no_number(text: str) -> None:
    assert parse_number(text) is None


def test_a_number_that_can_not_be_read_is_none_and_named_once(open_board: OpenBoard) -> None:
    system = open_board("rpi5", errnos={"scaling_cur_freq": "EIO"})
    path = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
    assert read_number(system, path) is None
    assert read_number(system, path) is None
    assert [sentence for sentence in system.warnings if path in sentence] == system.warnings
    assert len(system.warnings) == 1


@pytest.mark.parametrize("name", NAMES)
def test_shuffled_numbers_change_nothing(open_board: OpenBoard, name: str) -> None:
    whole = read_all(open_board(name))
    assert read_all(open_board(name, seed=11)) == whole


def test_identity_memory_and_modes_take_under_50_ms() -> None:
    def once() -> float:
        load_catalogue.cache_clear()
        start = time.process_time()
        system = System(FIXTURES / "agx-orin-jp6")
        _, entry = identify_entry(system)
        read_memory(system, entry)
        read_modes(system)
        return time.process_time() - start

    assert min(once() for _ in range(5)) < 0.05 * slowness()


def test_the_readers_bring_no_heavy_import() -> None:
    code = (
        "import sys, edgetune.device.board, edgetune.device.memory, edgetune.device.modes, edgetune.device.throttle;"
        "print(*sorted({'torch', 'numpy', 'PIL', 'typer', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
