"""The process behind a virtual board: CPU nanoseconds in, sensor files and the true integral out.

Arguments: root, truth file, control file, idle watts, watts a core, averaging window in seconds, process ids.
"""

from __future__ import annotations

import os
import select
import shutil
import struct
import sys
import time
from collections import deque
from pathlib import Path

TICK_S = 0.005
REFRESH_S = 0.025
CHILDREN_S = 0.1
MILLIVOLTS = 4928
MILLIAMPERE_STEP = 8
SHARES = {1: ("VDD_IN", 1.0), 2: ("VDD_CPU_GPU_CV", 0.45), 3: ("VDD_SOC", 0.25)}  # the last two lie inside the first


def cpu_ns(pid: int) -> int | None:
    """Scheduler nanoseconds a process has run, its ended threads included, or None once it is gone."""
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)  # Linux: the process's CPUCLOCK_SCHED clock
    except OSError:
        return None


def family(pids: list[int]) -> list[int]:
    """`pids` and all their living descendants, but not this process, which is the board's hardware."""
    found, queue = [], list(pids)
    while queue:
        pid = queue.pop()
        if pid == os.getpid():
            continue
        found.append(pid)
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as children:
                    queue += [int(child) for child in children.read().split()]
        except OSError:
            continue
    return found


def put(path: Path, text: str) -> None:
    """Replace a file so that a reader sees the old or the new figure, never half of one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    os.replace(temporary, path)


def make_chip(folder: Path, window_s: float) -> None:
    """The files of a mainline ina3221 that do not change."""
    folder.mkdir(parents=True, exist_ok=True)
    put(folder / "name", "ina3221\n")
    put(folder / "in7_label", "sum of shunt voltages\n")
    put(folder / "update_interval", f"{round(window_s * 1000)}\n")
    for channel, (label, _) in SHARES.items():
        put(folder / f"in{channel}_label", f"{label}\n")
        put(folder / f"in{channel}_input", f"{MILLIVOLTS}\n")
        put(folder / f"in{channel}_enable", "1\n")
        put(folder / f"shunt{channel}_resistor", "5000\n")


def show(folder: Path, watts: float) -> None:
    """Put a mean power on the sensor, in its steps."""
    for channel, (_, share) in SHARES.items():
        steps = round(watts * share * 1e6 / MILLIVOLTS / MILLIAMPERE_STEP)
        put(folder / f"curr{channel}_input", f"{steps * MILLIAMPERE_STEP}\n")


def main(root: str, truth: str, control: str, idle: str, core: str, window: str, *processes: str) -> None:
    try:  # hardware does not wait for software; without the right to this, a very busy machine slows the ticks
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        pass
    idle_w, core_w, window_s = float(idle), float(core), float(window)
    pids = [int(process) for process in processes]
    chip = Path(root) / "sys/class/hwmon/hwmon4"
    make_chip(chip, window_s)
    show(chip, idle_w)
    counts: dict[int, int] = {}
    joules, last_s = 0.0, time.monotonic()
    history = deque([(last_s, joules)])  # of the true integral, over one averaging window
    shown_s = listed_s = -1e9
    watched: list[int] = []
    with open(truth, "ab", buffering=0) as published:
        published.write(struct.pack("=dd", last_s, joules))
        while not select.select([sys.stdin], [], [], TICK_S)[0]:  # the caller's end closes standard input
            if last_s - listed_s >= CHILDREN_S:
                watched, listed_s = family(pids), last_s
            now_s, used_ns = time.monotonic(), 0
            for pid in watched:
                count = cpu_ns(pid)
                if count is not None:
                    used_ns += count - counts.get(pid, count)  # what a child used before it was seen is not drawn
                    counts[pid] = count
            joules += idle_w * (now_s - last_s) + core_w * used_ns / 1e9
            last_s = now_s
            published.write(struct.pack("=dd", now_s, joules))
            history.append((now_s, joules))
            while len(history) > 2 and history[1][0] <= now_s - window_s:
                history.popleft()
            if now_s - shown_s >= REFRESH_S:
                state = Path(control).read_text()
                if state == "ok":
                    if not chip.exists():
                        make_chip(chip, window_s)
                    show(chip, (joules - history[0][1]) / (now_s - history[0][0]))
                elif state == "gone" and chip.exists():
                    shutil.rmtree(chip)
                shown_s = now_s


if __name__ == "__main__":
    main(*sys.argv[1:])
