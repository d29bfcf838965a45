"""A board that does not exist, kept alive by a small process, so that a laptop tests what reads a Jetson.

`with virtual_board(folder) as board:` gives a file-system root, `board.root`, that looks like an Orin Nano. Its rail
monitor shows watts that follow the real CPU use of chosen processes (by default the caller and its children), taken
from the scheduler's nanoseconds. The same process integrates the true joules up to 200 times a second from the nanoseconds,
never from its sensor files; `board.true_joules(t0, t1)` returns them for two moments of `time.monotonic()`.

The sensor behaves like the chip: a mean over its averaging window, 8 mV and 8 mA steps. `board.sensor("frozen")` and
`board.sensor("gone")` break it; the truth goes on.
"""

from __future__ import annotations

import bisect
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_WORKER = Path(__file__).with_name("worker.py")
_MODEL = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
_COMPATIBLE = ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234")
_FILES = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64, "
    "DATE: Mon Jun 16 16:07:13 UTC 2025\n",
    "proc/version": "Linux version 5.15.148-tegra\n",
    "proc/meminfo": "MemTotal:        7802880 kB\nMemFree:         4120044 kB\nMemAvailable:    6250112 kB\n"
    "SwapTotal:       3901440 kB\nSwapFree:        3901440 kB\n"
    "NvMapMemFree:      94784 kB\nNvMapMemUsed:     805068 kB\n"
    "CmaTotal:         262144 kB\nCmaFree:          250000 kB\n",
    "proc/self/cgroup": "0::/user.slice\n",
    "proc/device-tree/model": _MODEL + "\0",
    "proc/device-tree/compatible": "".join(entry + "\0" for entry in _COMPATIBLE),
    "cmd/nvpmodel.txt": "NV Power Mode: 25W\n1\n",
}


@dataclass
class VirtualBoard:
    """A running virtual board. `root` goes into `System(board.root)`; `idle_w` and `core_w` are its law of power."""

    root: Path
    truth: Path
    control: Path
    idle_w: float
    core_w: float

    def true_joules(self, start_s: float, end_s: float) -> float:
        """Joules between two moments of `time.monotonic()`, from the integral the board keeps for itself."""
        deadline_s = time.monotonic() + 10.0
        while (points := self._points())[-1][0] < end_s:
            if time.monotonic() > deadline_s:
                raise RuntimeError("the virtual board's process has stopped")
            time.sleep(0.005)
        return _at(points, end_s) - _at(points, start_s)

    def true_rate_hz(self) -> float:
        """How often the integral was taken, so far."""
        points = self._points()
        return (len(points) - 1) / (points[-1][0] - points[0][0])

    def sensor(self, state: str) -> None:
        """Let the sensor be "ok", "frozen" (repeats itself) or "gone" (its folder vanishes)."""
        self.control.write_text(state)

    def _points(self) -> list[tuple[float, float]]:
        raw = self.truth.read_bytes()
        return list(struct.iter_unpack("=dd", raw[: len(raw) // 16 * 16]))


@contextmanager
def virtual_board(
    folder: Path,
    *,
    pids: Sequence[int] | None = None,
    idle_w: float = 5.0,
    core_w: float = 3.0,
    window_s: float = 0.1,
) -> Iterator[VirtualBoard]:
    """Start a virtual board below `folder` and stop it at the end of the block.

    Args:
        folder: an empty folder, such as pytest's `tmp_path`.
        pids: processes whose CPU use, with that of their children, draws power; None is the calling process.
        idle_w: watts at rest.
        core_w: watts a fully used core adds.
        window_s: the sensor's averaging window.
    """
    root = folder / "root"
    for name, content in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    board = VirtualBoard(root, folder / "truth", folder / "sensor-state", idle_w, core_w)
    board.sensor("ok")
    command = [sys.executable, "-I", "-S", str(_WORKER), str(root), str(board.truth), str(board.control)]
    command += [str(idle_w), str(core_w), str(window_s), *(str(pid) for pid in pids or (os.getpid(),))]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        deadline_s = time.monotonic() + 20.0
        while not board.truth.exists() or board.truth.stat().st_size < 32:
            if worker.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError("the virtual board's process did not start")
            time.sleep(0.01)
        yield board
    finally:
        worker.terminate()
        worker.wait()


def _at(points: list[tuple[float, float]], moment_s: float) -> float:
    """The integral at a moment, interpolated."""
    right = min(max(bisect.bisect_left(points, (moment_s,)), 1), len(points) - 1)
    (t0, j0), (t1, j1) = points[right - 1], points[right]
    return j0 + (j1 - j0) * (moment_s - t0) / (t1 - t0)
