"""NVIDIA's tegrastats, the last resort on a Jetson whose sensor files can't be read.

Its lines changed with every JetPack: a date or none, `mW` or none, two figures or three (current/average/peak),
negative figures, `NC` channels, and `GPU` and `CPU` as name of a temperature, a list and a rail in one line. Only the
first figure of each rail is used: the average runs since the tool was started. Grammar: public lines of JetPack 4 to
7.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable
from typing import IO

from edgetune.device.catalogue import BoardEntry, TotalRule
from edgetune.device.power.base import Facts, Judge, Reading, total_facts, total_w
from edgetune.device.system import System

_MEMORY = re.compile(r"(?<!\S)(?:RAM|SWAP|IRAM) \d+/\d+[kMG]?B(?: ?\([^)]*\))*")
_RAIL = re.compile(
    r"(?<!\S)([A-Za-z][A-Za-z0-9_]*) (-?\d{1,9})(?:mW)?/(-?\d{1,9})(?:mW)?(?:/(-?\d{1,9})(?:mW)?)?(?!\S)", re.ASCII
)
_COMMAND = "tegrastats"
_STALE_INTERVALS = 3


def parse_tegrastats(line: str) -> dict[str, float]:
    """Watts now by rail; not connected channels left out, the first of two rails of one name kept."""
    rails: dict[str, float] = {}
    for name, now, *_ in _RAIL.findall(_MEMORY.sub(" ", line)):
        if name != "NC":
            rails.setdefault(name, int(now) / 1000)
    return rails


class Tegrastats:
    """Rails as the tool prints them. On this machine one process is kept running; a recorded line is read as it is."""

    name = "tegrastats"
    measured = True
    interval_s = 0.1

    def __init__(
        self, system: System, entry: BoardEntry | None, spawn: Callable[[], IO[str] | None] | None = None
    ) -> None:
        self.system = system
        self._judge = Judge(system)
        self._process: subprocess.Popen[str] | None = None
        self._line: tuple[float, str] | None = None
        self._arrived = threading.Event()
        self._spawn = spawn or (self._start if system.live else None)
        if self._spawn:
            self._listen()
        else:
            text = (system.command(_COMMAND, "--interval", "1000", timeout_s=2.5) or "").strip()
            self._line = (system.clock(), text.splitlines()[-1]) if text else None
        self.rule: TotalRule | None = None
        self.rail_names = list(self.read().rails)
        self.rule = entry.total_rule(set(self.rail_names)) if entry else None
        self.scope = self.rule.scope if self.rule else "unknown"

    def read(self) -> Reading:
        """The newest line; unknown once it is older than a few intervals."""
        line = self._line
        if line is None:
            return Reading(None)
        if self._spawn and self.system.clock() - line[0] > _STALE_INTERVALS * self.interval_s + 1.0:
            return Reading(None)
        rails = {
            name: self._judge.believable(f"tegrastats {name}", watts)
            for name, watts in parse_tegrastats(line[1]).items()
        }
        total = total_w(self.rule, rails)
        if total == 0.0 and self.rule is not None:
            total = self._judge.believable_total(f"tegrastats {self.rule.rails[0]}", total)
        return Reading(total, rails)

    def facts(self) -> Facts:
        """Its own interval."""
        notes = ("as tegrastats prints it, in whole milliwatts", *total_facts(self.rule, self.rail_names))
        return Facts(interval_s=self.interval_s if self._spawn else None, notes=notes)

    def close(self) -> None:
        """End the tool; it never ends by itself."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _start(self) -> IO[str] | None:
        try:
            self._process = subprocess.Popen(
                [_COMMAND, "--interval", str(round(self.interval_s * 1000))],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                text=True, errors="replace", bufsize=1,
            )  # fmt: skip
        except OSError:
            return None
        return self._process.stdout

    def _listen(self) -> None:
        stream = self._spawn() if self._spawn else None
        if stream is None:
            return

        def take() -> None:
            for line in stream:
                self._line = (self.system.clock(), line)
                self._arrived.set()
            self._arrived.set()

        threading.Thread(target=take, name="tegrastats", daemon=True).start()
        self._arrived.wait(2.0)


def find_tegrastats(system: System, entry: BoardEntry | None) -> Tegrastats | None:
    """The tool's rails, or None where it doesn't run or prints none."""
    source = Tegrastats(system, entry)
    if source.rail_names:
        return source
    source.close()
    return None
