"""How close the machine is to its memory's end, from fixtures and from nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.device.pressure import Pressure, parse_stalled, read_pressure
from edgetune.device.system import System

PSI = "some avg10=1.53 avg60=0.87 avg300=0.20 total=8123\nfull avg10=0.40 avg60=0.11 avg300=0.02 total=991\n"


def test_a_board_with_everything(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal:        8000000 kB\nMemFree: 100 kB\nMemAvailable:     500000 kB\n",
        "proc/self/cgroup": "0::/train\n",
        "proc/pressure/memory": PSI,
        "sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n",
        "sys/fs/cgroup/train/memory.max": "1073741824\n",
        "sys/fs/cgroup/train/memory.current": "1063741824\n",
        "sys/fs/cgroup/train/memory.stat": "inactive_file 0\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert read_pressure(System(tmp_path)) == Pressure(
        available_bytes=512_000_000,
        total_bytes=8_192_000_000,
        group_room_bytes=10_000_000,
        group_limit_bytes=1 << 30,
        stalled=1.53 / 100,
    )


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    assert read_pressure(System(tmp_path)) == Pressure()


def test_this_machine() -> None:
    found = read_pressure(System())
    assert found.available_bytes is None or 0 < found.available_bytes <= (found.total_bytes or 0)


@pytest.mark.parametrize(
    ("text", "share"),
    [(PSI, 0.0153), ("some avg10=0.00 total=0\n", 0.0), ("some avg10=100.00 x", 1.0), ("full avg10=9.00\n", None),
     ("", None), ("some avg10=-1.00\n", None), ("some avg10=nan\n", None), ("some avg10=250.00 \n", None)],
)  # fmt: skip
def test_stall_information(text: str, share: float | None) -> None:
    assert parse_stalled(text) == (None if share is None else pytest.approx(share))


@given(st.text())
def test_any_text_is_a_share_or_nothing(text: str) -> None:
    found = parse_stalled("some avg10=" + text)
    assert found is None or 0 <= found <= 1
