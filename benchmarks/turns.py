"""Processes that take turns step by step, so that a host that is slow for a minute is slow for all of them.

Each worker takes a step whenever a line comes in, and answers with a line of JSON: `[seconds, bytes]`, of which the
bytes are the most it has taken so far above the bare process. The others sleep meanwhile.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

WARM_UP = 3  # steps of each that are not counted
RESAMPLES = 2000
_PAUSE_S = 0.05  # between two steps: threads of the last one may wait for work a moment longer


def serve(step: Callable[[], object], above_bytes: Callable[[], int]) -> None:
    """What a worker does once it has everything for its steps."""
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        seconds = time.perf_counter() - started
        print(json.dumps([seconds, above_bytes()]), flush=True)


def take_turns(commands: dict[str, Sequence[str]], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of each round's step of each worker, and its peak above the bare process."""
    workers = {
        name: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, command in commands.items()
    }
    names = list(commands)
    found: dict[str, dict[str, Any]] = {name: {"steps_s": []} for name in names}
    try:
        for number in range(WARM_UP + rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                process = workers[name]
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("step\n")
                process.stdin.flush()
                said = process.stdout.readline()
                if not said:
                    raise SystemExit(f"{name} ended before its time; what it said is above.")
                seconds, found[name]["above_bytes"] = json.loads(said)
                if number >= WARM_UP:
                    found[name]["steps_s"].append(round(seconds, 5))
                time.sleep(_PAUSE_S)
    finally:
        for process in workers.values():
            process.kill()
            process.wait()
    return found


def ratios(steps_s: Sequence[float], of: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios round by round, and between what 95 % of bootstrap medians lie."""
    found = [mine / theirs for mine, theirs in zip(steps_s, of, strict=True)]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(found, k=len(found))) for _ in range(RESAMPLES))
    return statistics.median(found), medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]
