"""The probes, in a registry keyed by (operation, lever): what one operation costs when it is run one way.

A later lever (8-bit saved tensors, recomputation, …) registers its own way of running a block and is timed beside the
others. Probes take a `Bench` and yield lines for the parent; torch is imported by the child before any of them runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from edgetune.device.energy import EnergyMeter
from edgetune.device.power.base import Facts
from edgetune.model.block import part_tokens
from edgetune.model.spec import ViTSpec

Line = dict[str, Any]
Probe = Callable[["Bench"], Iterator[Line]]

PROBES: dict[tuple[str, str], Probe] = {}

# Two widths (nano and Ti, then S) and three token counts (98 px to 224 px) that bracket the plain ViTs.
WIDTHS = ((192, 3), (384, 6))
TOKENS = (50, 101, 197)
# corners first
LEAN_SHAPES = (((192, 3), 197), ((384, 6), 50), ((768, 12), 197), ((384, 6), 197), ((192, 3), 50))
_GEMM_SIDES = (64, 128, 256, 512, 1024, 2048)
_SLOWEST_GEMM_S = 0.25  # a larger product is not tried once one took this long
_COPY_BYTES = 64 << 20
_SENSOR_WINDOWS, _LEAST_SAMPLES = 3, 10  # that a probe's energy must span; a shorter one shows what ran before it
_LONGEST_ENERGY_S = 3.2  # a probe is not stretched further for a slow sensor: it has no joules then


class Timing(NamedTuple):
    """Wall time of a call, and its joules where they could be measured.

    `seconds` is the lower quartile of the repeats: short enough to leave out what other processes took, not the one
    lucky run; `best_s` is that one.
    """

    seconds: float
    joules: float | None
    best_s: float


class Bench:
    """What a probe works with: a device, a stopwatch that bounds itself, and an energy meter.

    Args:
        device: "cpu" or "cuda".
        quick: shorter and fewer.
        deadline_s: on the monotonic clock; probes not started by then are left out.
        meter: running; None where no sensor exists.
    """

    def __init__(self, device: str, quick: bool, deadline_s: float, meter: EnergyMeter | None) -> None:
        self.device, self.quick, self.deadline_s, self.meter = device, quick, deadline_s, meter
        self.fp32_flops: float | None = None  # set by the first product, sizes everything after it
        source = meter.source if meter is not None else None
        facts: Facts = source.facts() if source is not None and hasattr(source, "facts") else Facts()
        self.sensor_window_s = facts.interval_s or 0.0

    def late(self) -> bool:
        """Whether there is no time for another probe."""
        return time.monotonic() > self.deadline_s

    def time(self, call: Callable[[], object], least_s: float | None = None) -> Timing:
        """Time a call: once to warm up, then until `least_s` has passed and at least three times (once when slow)."""
        if least_s is None:
            least_s = 0.1 if self.quick else self._energy_s() or 0.3
        call()
        self._wait()
        seconds: list[float] = []
        with self._window() as window:
            began = time.monotonic()
            while True:
                start = time.perf_counter()
                call()
                self._wait()
                seconds.append(time.perf_counter() - start)
                spent = time.monotonic() - began
                if (spent >= least_s and len(seconds) >= 3) or spent > 4 * max(least_s, 0.25) or self.late():
                    break
        joules = self._joules(window)
        ranked = sorted(seconds)
        return Timing(ranked[len(ranked) // 4], None if joules is None else joules / len(ranked), ranked[0])

    def _energy_s(self) -> float | None:
        """How long a call must be repeated for its joules to be known; None where that takes too long, or for ever."""
        if self.meter is None:
            return None
        seconds = 1.05 * max(_LEAST_SAMPLES * self.meter.interval_s, _SENSOR_WINDOWS * self.sensor_window_s)
        return seconds if seconds <= _LONGEST_ENERGY_S else None

    def _joules(self, window: Any) -> float | None:
        """A window's joules where it holds enough readings of a sensor that is quick enough."""
        if window is None or window.samples < _LEAST_SAMPLES:
            return None
        joules: float | None = window.joules if window.seconds >= _SENSOR_WINDOWS * self.sensor_window_s else None
        return joules if joules is not None and joules > 0 else None

    def _window(self) -> AbstractContextManager[Any]:
        return self.meter.window() if self.meter is not None else nullcontext()

    def _wait(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


def probe(operation: str, lever: str) -> Callable[[Probe], Probe]:
    """Register a probe; a second one of the same key is a mistake."""

    def register(function: Probe) -> Probe:
        if (operation, lever) in PROBES:
            raise ValueError(f"there is a probe of {operation} with {lever} already")
        PROBES[operation, lever] = function
        return function

    return register


@probe("matmul", "fp32")
def _matmul_fp32(bench: Bench) -> Iterator[Line]:
    bench.fp32_flops = _gemm_flops(bench, "float32")
    yield {"gemm": {"fp32": bench.fp32_flops}}


@probe("matmul", "bf16")
def _matmul_bf16(bench: Bench) -> Iterator[Line]:
    yield {"gemm": {"bf16": _gemm_flops(bench, "bfloat16")}}


@probe("matmul", "fp16")
def _matmul_fp16(bench: Bench) -> Iterator[Line]:
    yield {"gemm": {"fp16": _gemm_flops(bench, "float16")}}


def _gemm_flops(bench: Bench, dtype: str) -> float | None:
    """FLOPs per second of a square product, the best size reached; small ones first, as it may be 100 times slower."""
    import torch

    best: float | None = None
    for side in _GEMM_SIDES[:-1] if bench.quick else _GEMM_SIDES:
        try:
            left = torch.ones(side, side, dtype=getattr(torch, dtype), device=bench.device)
            timing = bench.time(lambda square=left: square @ square, 0.05 if bench.quick else 0.15)  # type: ignore[misc]
        except RuntimeError:  # this precision has no kernel here
            return best
        rate = 2 * side**3 / timing.best_s
        best = rate if best is None else max(best, rate)
        if timing.best_s > _SLOWEST_GEMM_S / 8 or bench.late():  # the next one has eight times the work
            return best
    return best


@probe("copy", "plain")
def _copy(bench: Bench) -> Iterator[Line]:
    import torch

    source = torch.ones(_COPY_BYTES // 4, device=bench.device)
    target = torch.empty_like(source)
    timing = bench.time(lambda: target.copy_(source))
    yield {"compute": {"copy_bytes_per_s": _COPY_BYTES / timing.seconds}}


@probe("block", "eager")
def _block_eager(bench: Bench) -> Iterator[Line]:
    """One transformer block under plain autograd, at every width and token count there is time for."""
    from edgetune.profile.block import block_lines

    # corners first, so that what is left out for want of time lies between what was measured
    shapes = [(width, tokens) for tokens in (TOKENS[2], TOKENS[0], TOKENS[1]) for width in WIDTHS]
    for (width, heads), tokens in shapes[:4] if bench.quick else shapes:
        if bench.late():
            yield {"warning": "the time for probes was up before every block shape was timed; estimates are coarser."}
            return
        spec = ViTSpec(name="probe", width=width, depth=1, heads=heads, patch_size=1, image_size=1)
        yield from block_lines(bench, spec, tokens, _batch_for(bench, spec, tokens))


@probe("block", "lean")
def _block_lean(bench: Bench) -> Iterator[Line]:
    """One transformer block as the lean trainer runs it, in parts of as many tokens as it would take."""
    from edgetune.profile.block import lean_block_lines

    for (width, heads), tokens in LEAN_SHAPES[:2] if bench.quick else LEAN_SHAPES:
        if bench.late():
            return  # the eager probe said so already, or will
        spec = ViTSpec(name="probe", width=width, depth=1, heads=heads, patch_size=1, image_size=1)
        yield from lean_block_lines(bench, spec, tokens, max(1, round(part_tokens(width) / tokens)))


def _batch_for(bench: Bench, spec: ViTSpec, tokens: int) -> int:
    """Images that keep a forward and backward pass near 0.2 s, and at least one."""
    flops = spec.block_flops(tokens)
    wanted_s = 0.1 if bench.quick else 0.2
    each_s = (flops.forward + flops.pass_gradient + flops.weight_gradient) / (0.6 * (bench.fp32_flops or 1e9))
    return max(1, min(16, math.floor(wanted_s / each_s)))
