"""Throw garbage at every parser of `edgetune.device`, and at whole boards whose files talk garbage.

Run: `python benchmarks/fuzz_parsers.py`. One line for each target goes to `benchmarks/results/fuzz_parsers.jsonl`:
inputs, seed, seconds, slowest input, failures. Inputs are made of the real texts of `tests/fixtures/devices` (cut,
doubled, spliced, with bytes and numbers changed) and of nothing but noise. A parser fails by raising anything but the
error it promises, by an answer that breaks its promise, or by taking longer than a second.

Whole boards: every file of a fixture is replaced by garbage, or fails to be read, with some probability; the board is
then identified and its memory, modes, throttle counters and power are read. What comes out must be a valid profile
part: no negative or absurd watts, no exception, warnings that are sentences.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import msgspec

from edgetune.device import board, catalogue, memory, modes, pressure, reading, throttle
from edgetune.device.power import describe_power, find_power
from edgetune.device.power.base import MOST_W
from edgetune.device.power.constant import parse_cpu_ticks
from edgetune.device.power.pmic import mailbox_answer, parse_pmic
from edgetune.device.power.rapl import Zone
from edgetune.device.power.tegrastats import parse_tegrastats
from edgetune.device.system import System
from edgetune.errors import InputError
from edgetune.resources import resource_folder
from edgetune.schema import now

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests/fixtures/devices"
NASTY = [
    b"", b"\0", b"\n", b"-", b"-0", b"-256000", b"nan", b"inf", b"1e309", b"9" * 40, b"9" * 5000, b"0x",
    b"\xff\xfe", b"\x80", b"max", b"off", b"NC", b"N/A", b"1_000", "٣".encode(), "²".encode(), b" 12 ", b"12\x00",
    b"+5", b"1.5", b"[]", b"{}", b"%", b"/", b"-9223372036854775809", b"18446744073709551616", b"RAM ",
    b"VDD_IN 1/1", b"=", b":", b"<", b"\r",
]  # fmt: skip
ERRORS = [errno.ENODATA, errno.EAGAIN, errno.EIO, errno.EACCES, errno.ENOENT, errno.EINVAL, errno.ENXIO]
SLOW_S = 1.0


def mutate(dice: random.Random, seeds: list[bytes]) -> bytes:
    """One input: a real text changed in a few places, two spliced, or noise."""
    if dice.random() < 0.1:
        return dice.randbytes(dice.randrange(200))
    text = bytearray(dice.choice(seeds)[:4096])
    if dice.random() < 0.2:
        other = dice.choice(seeds)[:4096]
        text = text[: dice.randrange(len(text) + 1)] + bytearray(other[dice.randrange(len(other) + 1) :])
    for _ in range(dice.randrange(1, 6)):
        at = dice.randrange(len(text) + 1)
        kind = dice.randrange(6)
        if kind == 0:
            text[at:at] = dice.choice(NASTY)
        elif kind == 1:
            text[at : at + dice.randrange(20)] = dice.choice(NASTY)
        elif kind == 2:
            del text[at : at + dice.randrange(40)]
        elif kind == 3 and at < len(text):
            text[at] = dice.randrange(256)
        elif kind == 4:
            text[at:at] = text[at : at + dice.randrange(200)]
        else:
            text[at:at] = str(dice.choice([-1, 1]) * dice.randrange(10 ** dice.randrange(1, 25))).encode()
    return bytes(text)


def corpus(*patterns: str) -> list[bytes]:
    """The fixtures' real files of some names."""
    found = {
        path.read_bytes() for pattern in patterns for path in sorted(FIXTURES.glob(f"*/**/{pattern}")) if path.is_file()
    }
    return sorted(found) or [b"0"]


@dataclass(frozen=True)
class Target:
    """A parser with the texts it is meant for and what must hold of its answer."""

    name: str
    run: Callable[[bytes], object]
    seeds: list[bytes]
    holds: Callable[[Any], bool] = lambda answer: True


def text_of(raw: bytes) -> str:
    return raw.decode(errors="replace")


def finite(rails: dict[str, float | None]) -> bool:
    return all(name and (watts is None or math.isfinite(watts)) for name, watts in rails.items())


def parse_entry(raw: bytes) -> object:
    """The catalogue's parser promises InputError, and nothing else, for a wrong file."""
    try:
        return catalogue.parse_entry(text_of(raw), "board", "board.toml")
    except InputError as error:
        return str(error).startswith("board.toml")


def walk_zone(raw: bytes) -> object:
    """A counter's walk through any numbers never falls."""
    zone, last = Zone("package-0", "energy_uj", (raw[0] << 20) if raw else None), 0.0
    for index, byte in enumerate(raw[1:60]):
        zone.advance(byte << (index % 40), float(index))
        if zone.joules < last:
            return False
        last = zone.joules
    return True


def targets() -> list[Target]:
    """Every parser of the room."""
    toml = [path.read_bytes() for path in sorted(resource_folder("devices").glob("*.toml"))]
    numbers = corpus("*_input", "energy_uj", "memory.limit_in_bytes", "temp", "cur_freq")
    pmic, lines = corpus("vcgencmd-pmic_read_adc.txt"), corpus("tegrastats.txt")
    found = [
        Target("catalogue.parse_entry", parse_entry, toml, bool),
        Target("board.parse_strings", board.parse_strings, corpus("compatible", "model")),
        Target("power.pmic.mailbox_answer", mailbox_answer, [bytes(24) + text for text in pmic]),
        Target("power.rapl.Zone.advance", walk_zone, numbers, bool),
        Target(
            "memory.parse_limit", lambda raw: memory.parse_limit(text_of(raw), 8 << 30), [b"max", *numbers], is_count
        ),
    ]
    of_text: list[tuple[str, Callable[[str], object], list[bytes], Callable[[Any], bool]]] = [
        ("power.tegrastats.parse_tegrastats", parse_tegrastats, lines, finite),
        ("power.pmic.parse_pmic", parse_pmic, pmic, finite),
        (
            "power.constant.parse_cpu_ticks",
            parse_cpu_ticks,
            [b"cpu  400 0 100 450 50 0 0 0 0 0\ncpu0 1 2 3 4\n"],
            ordered,
        ),
        ("reading.parse_number", reading.parse_number, numbers, is_number),
        ("board.parse_tegra_release", board.parse_tegra_release, corpus("nv_tegra_release"), comes_back),
        ("board.parse_package_version", board.parse_package_version, [b"36.4.4-20250616085344"], comes_back),
        ("board.parse_cpuinfo", board.parse_cpuinfo, corpus("cpuinfo"), comes_back),
        ("board.parse_revision", board.parse_revision, [b"c04170", b"a02082", b"900092"], comes_back),
        ("board.parse_assignments", board.parse_assignments, corpus("os-release", "rpi-issue"), comes_back),
        ("memory.parse_meminfo", memory.parse_meminfo, corpus("meminfo"), all_counts),
        ("memory.parse_cgroup", memory.parse_cgroup, corpus("cgroup"), comes_back),
        ("memory.parse_stat", memory.parse_stat, corpus("vmstat", "memory.stat"), all_counts),
        ("memory.parse_swaps", memory.parse_swaps, corpus("swaps"), all_counts),
        ("pressure.parse_stalled", pressure.parse_stalled, [b"some avg10=1.53 avg60=0.87 total=8123\n"], is_share),
        ("memory.parse_shm_size", memory.parse_shm_size, [b"tmpfs /dev/shm tmpfs rw,size=65536k 0 0\n"], is_count),
        ("modes.parse_nvpmodel", modes.parse_nvpmodel, corpus("nvpmodel--q.txt"), comes_back),
        ("modes.parse_nvpmodel_conf", modes.parse_nvpmodel_conf, corpus("nvpmodel_*.conf"), comes_back),
        ("modes.parse_nvpmodel_status", modes.parse_nvpmodel_status, corpus("nvpmodel/status"), comes_back),
        ("modes.parse_cpu_list", modes.parse_cpu_list, corpus("online"), comes_back),
        ("throttle.parse_get_throttled", throttle.parse_get_throttled, corpus("*get_throttled*"), is_count),
        ("throttle.parse_temperature", throttle.parse_temperature, numbers, is_number),
    ]
    found += [
        Target(name, lambda raw, run=run: run(text_of(raw)), seeds, holds)  # type: ignore[misc]
        for name, run, seeds, holds in of_text
    ]
    return found


def comes_back(answer: object) -> bool:
    """No more is promised than an answer."""
    return True


def ordered(ticks: tuple[int, int] | None) -> bool:
    return ticks is None or 0 <= ticks[0] <= ticks[1]


def is_number(value: object) -> bool:
    return value is None or type(value) is int


def is_share(value: object) -> bool:
    return value is None or (type(value) is float and 0 <= value <= 1)


def is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and value >= 0)


def all_counts(values: dict[str, int]) -> bool:
    return all(is_count(value) for value in values.values())


class GarbageSystem(System):
    """A fixture some of whose files talk garbage or can't be read; the same file keeps its fate."""

    def __init__(self, root: Path, dice: random.Random, share: float) -> None:
        super().__init__(root)
        self.dice, self.share = dice, share
        self.fates: dict[str, bytes | int | None] = {}

    def read_bytes(self, path: str) -> bytes:
        fate = self.fates.setdefault(path, self._draw(path))
        if isinstance(fate, int):
            raise OSError(fate, "injected")
        return super().read_bytes(path) if fate is None else fate

    def _draw(self, path: str) -> bytes | int | None:
        if self.dice.random() > self.share:
            return None
        if self.dice.random() < 0.4:
            return self.dice.choice(ERRORS)
        try:
            return mutate(self.dice, [super().read_bytes(path)])
        except OSError:
            return None


def read_board(seed: int) -> str | None:
    """One garbage board; what is wrong with what was read, if anything."""
    dice = random.Random(seed)
    names = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())
    system = GarbageSystem(FIXTURES / dice.choice(names), dice, dice.choice([0.02, 0.2, 0.7]))
    identity, entry = board.identify_entry(system)
    source = find_power(system, identity, entry)
    power = describe_power(system, source, entry)
    parts = [identity, memory.read_memory(system), modes.read_modes(system), power, throttle.read_throttle(system)]
    msgspec.json.encode(parts)
    for watts in (power.total_w, *power.rails.values()):
        if watts is not None and not 0 <= watts <= MOST_W:
            return f"{watts} W"
    for sentence in system.warnings:
        if not sentence.isprintable() or sentence[-1:] not in ".)":
            return f"warning {sentence!r}"
    return None


def fuzz(target: Target, inputs: int, seed: int) -> dict[str, Any]:
    """Run one target; the record of it."""
    dice = random.Random(f"{seed} {target.name}")
    failures: list[str] = []
    slowest_s, began_s = 0.0, time.monotonic()
    for _ in range(inputs):
        raw = mutate(dice, target.seeds)
        start_s = time.process_time()
        try:
            good = target.holds(target.run(raw))
            trouble = None if good else "broken promise"
        except Exception as error:  # any exception is what this looks for
            trouble = f"{type(error).__name__}: {error}"
        slowest_s = max(slowest_s, time.process_time() - start_s)
        if trouble:
            failures.append(f"{trouble} on {raw[:200]!r}")
    return record(target.name, inputs, seed, began_s, slowest_s, failures)


def fuzz_boards(inputs: int, seed: int) -> dict[str, Any]:
    """Read whole boards of garbage."""
    failures: list[str] = []
    slowest_s, began_s = 0.0, time.monotonic()
    for turn in range(inputs):
        start_s = time.process_time()
        try:
            trouble = read_board(seed * 1_000_003 + turn)
        except Exception as error:  # any exception is what this looks for
            trouble = f"{type(error).__name__}: {error}"
        slowest_s = max(slowest_s, time.process_time() - start_s)
        if trouble:
            failures.append(f"{trouble} on board {turn}")
    return record("whole boards", inputs, seed, began_s, slowest_s, failures)


def record(name: str, inputs: int, seed: int, began_s: float, slowest_s: float, failures: list[str]) -> dict[str, Any]:
    good = not failures and slowest_s < SLOW_S
    return {
        "target": name, "inputs": inputs, "seed": seed, "seconds": round(time.monotonic() - began_s, 2),
        "slowest_s": round(slowest_s, 4), "failures": len(failures), "first_failures": failures[:3],
        "result": "pass" if good else "fail", "created": now(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=5000, help="for each parser")
    parser.add_argument("--boards", type=int, default=2000, help="whole boards of garbage")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/fuzz_parsers.jsonl")
    options = parser.parse_args()
    records = [fuzz(target, options.inputs, options.seed) for target in targets()]
    records.append(fuzz_boards(options.boards, options.seed))
    total = sum(line["inputs"] for line in records)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w") as out:
        for line in records:
            out.write(json.dumps(line) + "\n")
            print(f"{line['result']}  {line['inputs']:>6}  {line['target']}", *line["first_failures"], sep="\n      ")
        failed = sum(line["result"] == "fail" for line in records)
        result = "fail" if failed else "pass"
        out.write(json.dumps({"target": "all", "inputs": total, "seed": options.seed, "result": result}) + "\n")
    print(f"{total} inputs, {failed} targets failed")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
