"""How exact are the joules? Known traces through the real `EnergyMeter`, on a simulated clock, and what a sample costs.

The table of docs/energy.md: `python benchmarks/energy_accuracy.py`. Nothing waits: the clock is simulated, so that
hundreds of windows of 30 s take seconds, and the true integral is exact. Each row is the worst of many windows that
differ in the phase of the wave, the phase of the sampling, the jitter and the reads that fail.

The last figures are processor time (not wall time, so that other work on the machine doesn't matter) of one second of
sampling the fixture of an Orin Nano at 10 Hz. What the i2c bus of a board adds is not in them.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from edgetune.device.catalogue import find_entry
from edgetune.device.energy import EnergyMeter
from edgetune.device.power import Reading
from edgetune.device.power.ina3221 import RailMonitors, find_rails
from edgetune.device.system import System
from edgetune.schema import now, to_json

FIXTURE = Path(__file__).parent.parent / "tests/fixtures/devices/orin-nano-super-jp6"
LOW_W, HIGH_W = 5.0, 15.0


@dataclass(frozen=True)
class Trace:
    """Watts over time, with its exact integral from 0. `hz` is its fastest period, 0 for none."""

    name: str
    hz: float
    watts: Callable[[float], float]
    joules: Callable[[float], float]


def constant() -> Trace:
    """A steady load."""
    return Trace("constant", 0.0, lambda t: LOW_W, lambda t: LOW_W * t)


def ramp(seconds: float) -> Trace:
    """From low to high over the window."""
    slope = (HIGH_W - LOW_W) / seconds
    return Trace("ramp", 0.0, lambda t: LOW_W + slope * t, lambda t: LOW_W * t + slope * t * t / 2)


def sine(hz: float, phase: float) -> Trace:
    """A smooth wave."""
    mean, half, omega = (LOW_W + HIGH_W) / 2, (HIGH_W - LOW_W) / 2, 2 * math.pi * hz
    return Trace(
        f"sine {hz:g} Hz",
        hz,
        lambda t: mean + half * math.sin(omega * t + phase),
        lambda t: mean * t - half * (math.cos(omega * t + phase) - math.cos(phase)) / omega,
    )


def square(hz: float, phase: float) -> Trace:
    """On and off, half and half: the hardest wave for trapezoids."""

    def high_until(t: float) -> float:
        """Seconds spent high from the wave's own zero to `t`."""
        periods, rest = divmod(t * hz + phase / (2 * math.pi), 1.0)
        return (periods * 0.5 + min(rest, 0.5)) / hz

    def is_high(t: float) -> bool:
        return (t * hz + phase / (2 * math.pi)) % 1.0 < 0.5

    return Trace(
        f"square {hz:g} Hz",
        hz,
        lambda t: HIGH_W if is_high(t) else LOW_W,
        lambda t: LOW_W * t + (HIGH_W - LOW_W) * (high_until(t) - high_until(0.0)),
    )


class TraceSource:
    """A sensor of a trace: instantaneous or a mean over a window, in the chip's steps, now and then silent."""

    name = "trace"
    scope = "module"
    measured = True

    def __init__(self, trace: Trace, clock: Callable[[], float], window_s: float, drop: float, seed: int) -> None:
        self.trace, self.clock, self.window_s, self.drop = trace, clock, window_s, drop
        self.random = random.Random(seed)

    def read(self) -> Reading:
        if self.random.random() < self.drop:
            return Reading(None)
        moment = self.clock()
        if self.window_s:
            watts = (self.trace.joules(moment) - self.trace.joules(moment - self.window_s)) / self.window_s
        else:
            watts = self.trace.watts(moment)
        return Reading(round(watts / 0.0394) * 0.0394)  # 8 mA at 4.93 V


def window_error(
    trace: Trace, seconds: float, hz: float, window_s: float, jitter: float, drop: float, seed: int
) -> float:
    """Relative error of one window of `seconds`."""
    moment = 0.0
    dice = random.Random(seed)

    def clock() -> float:
        return moment

    meter = EnergyMeter(TraceSource(trace, clock, window_s, drop, seed), 1 / hz, clock, thread=False)
    start_s = 10.0 + dice.random() / hz  # the window falls anywhere between two readings
    end_s = start_s + seconds
    window = meter.window()
    opened = closed = False
    meter._due_s = due_s = 9.8
    while not closed:
        tick = max(due_s + jitter / hz * dice.uniform(-1, 1), moment + 1e-6)
        if not opened and tick > start_s:
            moment, opened = start_s, True
            window.__enter__()
        if opened and not closed and tick > end_s:
            moment, closed = end_s, True
            window.__exit__(None, None, None)
        moment = tick
        due_s = meter.next_s(moment, meter.sample())
    truth = trace.joules(end_s) - trace.joules(start_s)
    joules = window.estimated_joules
    return math.inf if joules is None else abs(joules - truth) / truth


def rows(seconds: float, repeats: int) -> list[dict[str, object]]:
    """Worst and typical error of every trace under every condition."""
    conditions = [("steady", 0.0, 0.0), ("jitter ±5 ms", 0.05, 0.0), ("jitter ±5 ms, 5 % of reads fail", 0.05, 0.05)]
    table: list[dict[str, object]] = []
    waves = [(sine, 0.5), (sine, 1.0), (sine, 1.9), (square, 0.1), (square, 1.0), (square, 1.9), (square, 10.0)]
    makers: list[tuple[str, float, Callable[[float], Trace]]] = [
        ("constant", 0.0, lambda phase: constant()),
        ("ramp", 0.0, lambda phase: ramp(seconds + 20)),
        *((f"{wave.__name__} {hz:g} Hz", hz, partial(wave, hz)) for wave, hz in waves),
    ]
    for name, hz, make in makers:
        for sensor, window_s in (("instantaneous", 0.0), ("mean over 0.1 s", 0.1)):
            for condition, jitter, drop in conditions:
                errors = sorted(
                    window_error(
                        make(random.Random(seed).uniform(0, 2 * math.pi)), seconds, 10.0, window_s, jitter, drop, seed
                    )
                    for seed in range(repeats)
                )
                table.append(
                    {
                        "trace": name, "hz": hz, "sensor": sensor, "sampling": condition, "windows": repeats,
                        "window_s": seconds, "median_error": errors[repeats // 2],
                        "error_of_19_in_20": errors[repeats * 19 // 20], "worst_error": errors[-1],
                    }
                )  # fmt: skip
    return table


def sampling_cost(seconds: float = 20.0, hz: float = 10.0) -> dict[str, float]:
    """Processor seconds per second of sampling the fixture, as the thread itself counts them, and of bare reads."""
    source = RailMonitors(System(FIXTURE), find_rails(System(FIXTURE)), find_entry("orin-nano"))
    meter = EnergyMeter(source, 1 / hz)
    with meter, meter.window() as window:
        time.sleep(seconds)
    began = time.process_time()
    for _ in range(1000):
        source.read()
    return {
        "hz": hz,
        "seconds": seconds,
        "samples": window.samples,
        "share_of_one_core": meter.sampling_cpu_s / window.seconds,
        "read_s": (time.process_time() - began) / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a window")
    parser.add_argument("--repeats", type=int, default=200, help="windows for each row")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/energy_accuracy.json")
    options = parser.parse_args()
    table, cost = rows(options.seconds, options.repeats), sampling_cost()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(to_json({"created": now(), "rows": table, "sampling": cost}))
    print("| trace | sensor | sampling | typical error | 19 in 20 below | worst |\n|---|---|---|---|---|---|")
    for row in table:
        print(
            f"| {row['trace']} | {row['sensor']} | {row['sampling']} "
            f"| {row['median_error']:.2%} | {row['error_of_19_in_20']:.2%} | {row['worst_error']:.2%} |"
        )
    share, read_us = cost["share_of_one_core"], cost["read_s"] * 1e6
    print(f"\nSampling at {cost['hz']:g} Hz: {share:.2%} of one core; one read of the board {read_us:.0f} µs.")
    # an instantaneous sensor of a hard wave near 2 Hz is at the limit of what ten readings a second can know: reported
    gated = [
        float(str(row["error_of_19_in_20"]))
        for row in table
        if float(str(row["hz"])) <= 1 or (float(str(row["hz"])) < 2 and row["sensor"] != "instantaneous")
    ]
    if max(gated) >= 0.01 or share >= 0.01:
        raise SystemExit(f"A gate is missed: 19 in 20 windows are within {max(gated):.2%}, sampling costs {share:.2%}.")


if __name__ == "__main__":
    main()
