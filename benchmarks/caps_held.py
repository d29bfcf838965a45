"""Memory caps that hold: random `edgetune fit` runs, each in a control group whose hard limit is the cap itself.

    sudo python benchmarks/caps_held.py run --count 100
    python benchmarks/caps_held.py table

The room (cap less bare process) lies between one and two times the smallest feasible one. Odd numbers are models of
W1's and W3's size, the others come from `predict_memory.py`'s draw. Every eighth run asks for exactly the smallest
feasible cap. The group has no swap; version 1 or 2, whichever the machine has. Where none can be made (it needs root),
the run is made without one, says so, and the measured peak is held against the cap instead. Runs of the series `caps`
are of an earlier commit (`--series`).

A run must not be killed, must end with a checkpoint and the exit code of the contract, and should not be slowed down by
reclaim: the same plan is run once more with no group, and the median step times are compared. That comparison means
something only on an otherwise idle machine (`--quiet-machine`). One line per run goes to `results/caps_held.jsonl`; a
number that has a line is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import append, lines
from predict_memory import CLASSES, STEPS_PER_EPOCH, Case, Kept, draw, edgetune, options_of
from workloads import prepare_synthetic

NAME = "caps_held"
SERIES = ("caps", "caps-2")
_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_LARGE = (("vit_small_patch14_dinov2", 98, 32), ("vit_base_patch16_224", 224, 4))


class Group:
    """A control group with a hard memory limit.

    Args:
        path: its folder, which exists.
        limit_bytes: of everything in it.
        version: 1 or 2.
    """

    def __init__(self, path: Path, limit_bytes: int, version: int) -> None:
        self.path, self.version = path, version
        if version == 1:
            (path / "memory.limit_in_bytes").write_text(str(limit_bytes))
            self._try("memory.memsw.limit_in_bytes", str(limit_bytes))
            self._try("memory.swappiness", "0")
        else:
            (path / "memory.max").write_text(str(limit_bytes))
            self._try("memory.swap.max", "0")

    def _try(self, name: str, text: str) -> None:
        try:
            (self.path / name).write_text(text)
        except OSError:  # a kernel that counts no swap has none to give
            pass

    def enter(self) -> None:
        """Move the calling process in; for the child, before it runs anything."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def kills(self) -> int | None:
        """How often the kernel killed in it."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        found = dict(line.split() for line in (self.path / name).read_text().splitlines() if len(line.split()) == 2)
        return int(found["oom_kill"]) if "oom_kill" in found else None

    def peak_bytes(self) -> int | None:
        """The most that it held, page cache included."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        path = self.path / name
        return int(path.read_text()) if path.exists() else None


@contextmanager
def group(limit_bytes: int) -> Iterator[Group | None]:
    """A fresh group, or None where this user may make none."""
    version = 1 if (_V1 / "memory.limit_in_bytes").exists() else 2
    path = (_V1 if version == 1 else _V2) / f"edgetune-caps-{os.getpid()}"
    try:
        path.mkdir()
    except OSError:
        yield None
        return
    try:
        made = Group(path, limit_bytes, version)
    except OSError:  # version 2 where the parent hands no memory controller down
        path.rmdir()
        yield None
        return
    try:
        yield made
    finally:
        path.rmdir()


def draw_case(series: str, number: int) -> tuple[Case, float]:
    """The plan of that number, and the room it gets as a multiple of the smallest feasible one."""
    rng = random.Random(f"{series} {number}")
    case = draw(series, number)
    if number % 2:
        model, size, batch = _LARGE[number // 2 % 2]
        method = rng.choice(["edgetune", "edgetune", "full", "last-4"])
        levers = ("trainer=lean", f"trained_blocks={rng.randint(1, 12)}") if method == "edgetune" else ("trainer=lean",)
        case = Case(model, size, batch, method, levers, None)
    return case._replace(cap=None), 1.0 if number % 8 == 0 else rng.uniform(1, 2)


def measure(series: str, number: int, kept: Kept, threads: int, scratch: Path) -> dict[str, Any]:
    """One run in its group, and the same plan again without."""
    case, multiple = draw_case(series, number)
    data = scratch / "data"
    train = -(-STEPS_PER_EPOCH * case.batch_size // CLASSES) * CLASSES
    prepare_synthetic(data, train=train, val=2 * CLASSES, side=case.image_size * 5 // 4)
    options = options_of(case, data, kept.weights(case.model), kept.profile, threads)
    refused = json.loads(edgetune("plan", *options, "--memory", "1MiB", "--json", threads=threads).stdout)
    if "nearest_feasible" not in refused:
        return {"case": case.name, "refused": refused.get("error", "?")}
    runtime = kept.runtime_bytes
    smallest = refused["nearest_feasible"]["memory_bytes"] - runtime
    cap = int(runtime + multiple * smallest) + 1
    plan = scratch / "plan.json"
    made = edgetune("plan", *options, "--memory", str(cap), "--out", str(plan), threads=threads)
    if made.returncode:
        return {"case": case.name, "refused": made.stderr.strip()[-400:]}
    words = [sys.executable, "-m", "edgetune", "fit", str(data), "--plan", str(plan), "--quiet", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with group(cap) as confined:
        done = subprocess.run(
            [*words, str(scratch / "run")],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            preexec_fn=confined.enter if confined else None,
        )
        kills = confined.kills() if confined else None
        group_peak = confined.peak_bytes() if confined else None
    free = subprocess.run(
        [*words, str(scratch / "free")], capture_output=True, text=True, env=environment, check=False
    ).returncode
    result = json.loads((scratch / "run" / "result.json").read_text()) if done.returncode in (0, 4) else None
    peak = None if result is None else result["memory"]["measured_peak_bytes"]
    baseline = None if result is None else result["memory"]["baseline_bytes"]
    bill = json.loads(plan.read_text())["predicted"]
    predicted = bill["peak_memory_bytes"] - bill["memory"]["runtime"]
    return {
        "case": case.name,
        "multiple": multiple,
        "smallest_room_bytes": smallest,
        "cap_bytes": cap,
        "group": None if confined is None else confined.version,
        "group_peak_bytes": group_peak,
        "kills": kills,
        "exit": done.returncode,
        "stderr": done.stderr.strip()[-300:],
        "checkpoint": (scratch / "run" / "best.safetensors").exists(),
        "stopped_by": None if result is None else result["stopped_by"],
        "baseline_bytes": baseline,
        "measured_peak_bytes": peak,
        "predicted_above_baseline_bytes": predicted,
        "measured_above_baseline_bytes": None if peak is None or baseline is None else peak - baseline,
        "events": events(scratch / "run"),
        "step_s": step_s(scratch / "run"),
        "free_step_s": step_s(scratch / "free") if free == 0 else None,
    }


def events(run: Path) -> list[str]:
    """What the governor did."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["event"] for row in rows if row.get("kind") == "event"]


def step_s(run: Path) -> float | None:
    """Median time of a step by its images, the first step of the run left out."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return None
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rates = [row["images_per_s"] for row in rows if row.get("kind") == "step"][1:]
    return None if not rates else 1 / statistics.median(rates)


def of_series(series: str) -> list[dict[str, Any]]:
    """Its lines; the first series' have no name."""
    return [line for line in lines(NAME) if line.get("series", SERIES[0]) == series]


def run(series: str, count: int, threads: int, quiet: bool) -> None:
    """Make the runs that have no line yet."""
    done = {line["number"] for line in of_series(series)}
    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(Path(folder), threads)
        for number in (number for number in range(count) if number not in done):
            with tempfile.TemporaryDirectory() as scratch:
                record = measure(series, number, kept, threads, Path(scratch))
            append(NAME, {"series": series, "number": number, "threads": threads, "quiet": quiet, **record})
            shown = record.get("refused") or f"exit {record['exit']}, kills {record['kills']}, {record['events']}"
            print(f"{number:4} {record['case']}: {shown}", flush=True)


def table(series: str) -> None:
    """Markdown: the counts, then every run that is not as it should be."""
    records = list({line["number"]: line for line in of_series(series)}.values())
    found = [line for line in records if "exit" in line]
    grouped = [line for line in found if line["group"]]
    killed = [line for line in grouped if line["kills"]]
    ended = [line for line in found if line["exit"] in (0, 4) and line["checkpoint"]]
    over = [line for line in found if line["measured_peak_bytes"] and line["measured_peak_bytes"] > line["cap_bytes"]]
    slowed = [
        line["step_s"] / line["free_step_s"]
        for line in grouped
        if line["quiet"] and line["step_s"] and line["free_step_s"] and not line["events"]
    ]
    tight = [
        line["measured_above_baseline_bytes"] / line["predicted_above_baseline_bytes"]
        for line in found
        if line["multiple"] == 1.0 and line["measured_above_baseline_bytes"]
    ]
    of_room = [
        line["measured_above_baseline_bytes"] / line["smallest_room_bytes"]
        for line in found
        if line["multiple"] == 1.0 and line["measured_above_baseline_bytes"] and line.get("smallest_room_bytes")
    ]
    print("| what | runs |\n|---|---:|")
    print(f"| runs | {len(found)} ({len(records) - len(found)} draws refused) |")
    print(f"| in a control group with the cap as its limit | {len(grouped)} |")
    print(f"| killed | {len(killed)} |")
    print(f"| ended with a checkpoint and exit code 0 or 4 | {len(ended)} |")
    print(f"| measured peak above the cap | {len(over)} |")
    print(f"| tightened by the governor | {sum('tightened' in line['events'] for line in found)} |")
    if slowed:
        print(f"| step time against the same plan without a group | {statistics.median(slowed):.2f} median,"
              f" {max(slowed):.2f} highest |")  # fmt: skip
    if tight:
        print(f"| smallest feasible cap: measured over predicted | {statistics.median(tight):.2f} median,"
              f" {min(tight):.2f} lowest of {len(tight)} |")  # fmt: skip
    if of_room:
        print(f"| the same over the room, the prediction's upper bound | {statistics.median(of_room):.2f} median,"
              f" {min(of_room):.2f} to {max(of_room):.2f} |")  # fmt: skip
    wrong = [line for line in found if line in killed or line not in ended or line in over]
    for line in wrong:
        print(f"\n- {line['number']}: {line['case']}: exit {line['exit']}, {line['events']}, {line['stderr']}")


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--series", choices=SERIES, default=SERIES[-1])
    running.add_argument("--count", type=int, default=100)
    running.add_argument("--threads", type=int, default=2)
    running.add_argument("--quiet-machine", action="store_true", help="nothing else runs: step times may be compared")
    commands.add_parser("table").add_argument("--series", choices=SERIES, default=SERIES[-1])
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.series, arguments.count, arguments.threads, arguments.quiet_machine)
    else:
        table(arguments.series)


if __name__ == "__main__":
    main()
