"""The probes, in a registry keyed by (operation, lever): what one operation costs when it is run one way.

A later lever (8-bit saved tensors, recomputation, …) registers its own way of running a block and is timed beside the
others. Probes take a `Bench` and yield lines for the parent; torch is imported by the child before any of them runs.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

from edgetune.device.energy import EnergyMeter
from edgetune.device.power import facts_of
from edgetune.device.power.base import Facts
from edgetune.model.block import part_tokens
from edgetune.model.spec import ViTSpec

Line = dict[str, Any]
Probe = Callable[["Bench"], Iterator[Line]]

PROBES: dict[tuple[str, str], Probe] = {}
ONCE: set[tuple[str, str]] = set()  # those that find the same again, or the best there is
TIGHT: set[tuple[str, str]] = set()  # those of a process of their own, under the lean allocator
# Probes of a full profile are run so many times, one round after the other, and what each found is the median: a
# machine that others share is slower for some seconds, and one round alone would be the picture of those.
ROUNDS = 3

# (width, heads), tokens and images at a time, of nano, Ti, S and B at 32 px to 224 px: what lies between is reckoned
# from these (`edgetune.plan.rates`), so those that tell most come first. No number of images: `_batch_for`.
Shapes = tuple[tuple[tuple[int, int], int, int | None], ...]
_TI, _S, _B = (192, 3), (384, 6), (768, 12)
EAGER_SHAPES: Shapes = (
    (_TI, 197, None), (_S, 50, None), (_S, 197, None), (_TI, 50, None), (_B, 197, None), (_TI, 17, 1),
    (_S, 50, 2), (_B, 50, 2), (_TI, 101, None), (_S, 101, None),
)  # fmt: skip
# No number of images: as many as the lean trainer passes together where no cap asks for fewer.
LEAN_SHAPES: Shapes = (
    (_TI, 197, None), (_S, 50, None), (_B, 197, None), (_S, 197, None), (_TI, 50, None), (_TI, 17, 1),
    (_S, 50, 2), (_B, 50, 2), (_TI, 50, 2), (_S, 197, 8), (_B, 197, 1),
)  # fmt: skip
BF16_SHAPES: Shapes = ((_TI, 197, 2), (_S, 50, 8), (_B, 197, 1), (_B, 50, 8), (_TI, 33, 1), (_TI, 65, 3))
SLOW_BF16_SHAPES: Shapes = ((_TI, 50, 2), (_S, 50, 2), (_S, 17, 1))
# Under the lean allocator; each is also among those above, or near one.
EAGER_TIGHT_SHAPES: Shapes = ((_TI, 50, 4), (_S, 50, 4), (_B, 50, 2), (_TI, 197, 4))
LEAN_TIGHT_SHAPES: Shapes = ((_TI, 17, 1), (_TI, 50, 8), (_S, 50, 2), (_S, 50, 8), (_B, 50, 2), (_B, 197, 1))
_MOST_COPIES, _BEYOND_CACHES_BYTES = 24, 96 << 20  # as many as a large model has
_MEMORY_SHARE = 1 / 16  # of the machine's, that the probes of a block may take for it
_LEAST_SHARE = 0.02  # of a whole, that a part of it takes
_USEFUL_BF16 = 0.5  # of fp32's rate: nobody trains with less, so a few small shapes do
_GEMM_SIDES = (64, 128, 256, 512, 1024, 2048)
_SLOWEST_GEMM_S = 0.25  # a larger product is not tried once one took this long
_COPY_BYTES = 64 << 20
_FILE_BYTES = 8 << 20
_SENSOR_WINDOWS, _LEAST_SAMPLES = 3, 10  # that a probe's energy must span; a shorter one shows what ran before it
_LONGEST_ENERGY_S = 3.2  # a probe is not stretched further for a slow sensor: it has no joules then


class Timing(NamedTuple):
    """Wall time of a call, and its joules where they could be measured.

    `seconds` is the median of the repeats, since it adds up to what whole epochs take; `best_s` is the one lucky run.
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
        self.again = False  # whether this is a later round
        self.fp32_flops: float | None = None  # set by the first product, sizes everything after it
        self.bf16_flops: float | None = None
        source = meter.source if meter is not None else None
        facts = Facts() if source is None else facts_of(source)
        self.sensor_window_s = facts.interval_s or 0.0

    @property
    def brief_s(self) -> float:
        """How long to time what needs no joules, however slow the sensor is; a full profile does it every round."""
        return 0.1

    @property
    def tensor_s(self) -> float:
        """The same of what is one small part of a step."""
        return 0.5 * self.brief_s

    def copies(self, each_bytes: int, least: int = 1) -> int:
        """How many of something to use in turns, so that each is found in memory and not in caches, as in a run."""
        most_bytes = min(_BEYOND_CACHES_BYTES, _MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        return max(least, min(_MOST_COPIES, math.ceil(most_bytes / each_bytes)))

    def late(self) -> bool:
        """Whether there is no time for another probe."""
        return time.monotonic() > self.deadline_s

    def time(self, call: Callable[[], object], least_s: float | None = None) -> Timing:
        """Time a call: once to warm up, then until `least_s` has passed and at least three times (once when slow)."""
        if least_s is None:  # joules take longer, and are for when everything was timed once
            least_s = (self._energy_s() if self.again else None) or self.brief_s
        call()
        self._wait()
        seconds: list[float] = []
        with self._window() as window:
            began = time.monotonic()
            while True:
                seconds.append(self._once(call))
                if self._enough(time.monotonic() - began, len(seconds), least_s):
                    break
        joules = self._joules(window)
        ranked = sorted(seconds)
        return Timing(ranked[len(ranked) // 2], None if joules is None else joules / len(ranked), ranked[0])

    def time_parts(self, *calls: Callable[[], object]) -> list[Timing]:
        """Time calls of which each does what the one before does and something more: the first, and what each adds.

        They take turns, and what one adds is the median of its differences: a machine that others share is slower for a
        while, and of calls timed one after the other one alone would be. Where joules are measured they are timed so
        after all, as a sensor can't follow turns: in later rounds, and where calls are so slow that it costs no time.
        What is lost in noise counts as little, never as nothing.
        """
        turn_s, energy_s = sum(self._once(call) for call in calls), self._energy_s()
        if energy_s is not None and (self.again or turn_s > len(calls) * energy_s):
            found = [self.time(call) for call in calls]
            return [found[0], *(_less(whole, part) for part, whole in pairwise(found))]
        turns: list[list[float]] = []
        began = time.monotonic()
        while True:
            turns.append([self._once(call) for call in calls])
            if self._enough(time.monotonic() - began, len(turns), len(calls) * self.brief_s):
                break
        wholes = [statistics.median(turn[place] for turn in turns) for place in range(len(calls))]
        added = [[turn[0], *(whole - part for part, whole in pairwise(turn))] for turn in turns]
        seconds = [
            max(statistics.median(turn[place] for turn in added), _LEAST_SHARE * whole)
            for place, whole in enumerate(wholes)
        ]
        return [Timing(part_s, None, part_s) for part_s in seconds]

    def _enough(self, spent_s: float, times: int, least_s: float) -> bool:
        """Whether something was timed long and often enough, or for too long."""
        return (spent_s >= least_s and times >= 3) or spent_s > 4 * max(least_s, 0.25) or self.late()

    def _once(self, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

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


def _less(whole: Timing, part: Timing) -> Timing:
    """A difference of two timings; noise may not make seconds negative, and joules lost in it are unknown, not 0."""
    joules = None if whole.joules is None or part.joules is None else whole.joules - part.joules
    if joules is not None and joules <= 0:
        joules = None
    seconds, best_s = (
        max(of_whole - of_part, _LEAST_SHARE * of_whole)
        for of_whole, of_part in ((whole.seconds, part.seconds), (whole.best_s, part.best_s))
    )
    return Timing(seconds, joules, best_s)


def probe(operation: str, lever: str, *, once: bool = False, tight: bool = False) -> Callable[[Probe], Probe]:
    """Register a probe; a second one of the same key is a mistake.

    Args:
        operation: what is timed.
        lever: how it is run.
        once: later rounds leave it out.
        tight: it belongs to the process under the lean allocator.
    """

    def register(function: Probe) -> Probe:
        if (operation, lever) in PROBES:
            raise ValueError(f"there is a probe of {operation} with {lever} already")
        PROBES[operation, lever] = function
        if once:
            ONCE.add((operation, lever))
        if tight:
            TIGHT.add((operation, lever))
        return function

    return register


@probe("memory", "first use", once=True)
def _first_use(bench: Bench) -> Iterator[Line]:
    """Before any other: code that is in memory already would not count."""
    if bench.device != "cpu":
        return
    from edgetune.profile.footprint import footprint_lines

    yield from footprint_lines()


@probe("matmul", "fp32", once=True)
def _matmul_fp32(bench: Bench) -> Iterator[Line]:
    bench.fp32_flops = _gemm_flops(bench, "float32")
    yield {"gemm": {"fp32": bench.fp32_flops}}


@probe("matmul", "bf16", once=True)
def _matmul_bf16(bench: Bench) -> Iterator[Line]:
    bench.bf16_flops = _gemm_flops(bench, "bfloat16")
    yield {"gemm": {"bf16": bench.bf16_flops}}


@probe("matmul", "fp16", once=True)
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


@probe("copy", "fresh")
def _fresh(bench: Bench) -> Iterator[Line]:
    """Memory written to for the first time, which the kernel has to find and to clear."""
    import torch

    timing = bench.time(lambda: torch.empty(_COPY_BYTES // 4, device=bench.device).fill_(1.0), bench.brief_s)
    yield {"compute": {"fresh_bytes_per_s": _COPY_BYTES / timing.seconds}}


@probe("copy", "file")
def _file(bench: Bench) -> Iterator[Line]:
    """A file brought to the disk of the working folder, and read while it is still in memory; nothing is left there."""
    block = os.urandom(_FILE_BYTES)
    try:
        with tempfile.TemporaryFile(dir=".", buffering=0) as file:

            def write() -> None:
                os.pwrite(file.fileno(), block, 0)
                os.fsync(file.fileno())

            writing = bench.time(write, bench.brief_s)  # cards wear with every write, and nobody asks for its joules
            buffer = bytearray(_FILE_BYTES)
            reading = bench.time(lambda: os.preadv(file.fileno(), [buffer], 0), bench.brief_s)
    except OSError as error:
        yield {"warning": f"writing to the working folder could not be timed ({error.strerror}); its time is guessed."}
        return
    rates = {"write_bytes_per_s": _FILE_BYTES / writing.seconds, "read_bytes_per_s": _FILE_BYTES / reading.seconds}
    yield {"compute": rates}


@probe("decode", "jpeg")
def _decode(bench: Bench) -> Iterator[Line]:
    """Images read as training reads them: a cost for each byte of the file and for each value that the model gets."""
    from edgetune.profile.images import decode_rates

    try:
        yield {"compute": decode_rates(bench)}
    except (ImportError, OSError) as error:
        yield {"warning": f"reading an image could not be timed ({error}); its time is guessed."}


@probe("block", "eager")
def _block_eager(bench: Bench) -> Iterator[Line]:
    """One transformer block under plain autograd, at every shape there is time for."""
    from edgetune.profile.block import block_lines

    for spec, tokens, batch in _timely(bench, EAGER_SHAPES, 4):
        yield from block_lines(bench, spec, tokens, _batch_for(bench, spec, tokens) if batch is None else batch)
    if bench.late() and not bench.again:
        yield {"warning": "the time for probes was up before every block shape was timed; estimates are coarser."}


@probe("block", "lean")
def _block_lean(bench: Bench) -> Iterator[Line]:
    """One transformer block as the lean trainer runs it."""
    from edgetune.profile.block import lean_block_lines

    for spec, tokens, batch in _timely(bench, LEAN_SHAPES, 3):
        together = max(1, round(part_tokens(spec.width) / tokens)) if batch is None else batch
        yield from lean_block_lines(bench, spec, tokens, together)


@probe("block", "lean-tight", tight=True)
def _block_lean_tight(bench: Bench) -> Iterator[Line]:
    """A block as the lean trainer runs it where memory is short."""
    from edgetune.profile.block import lean_block_lines

    for spec, tokens, batch in _timely(bench, LEAN_TIGHT_SHAPES, 0):
        yield from lean_block_lines(bench, spec, tokens, batch or 1, "lean-tight")


@probe("block", "eager-tight", tight=True)
def _block_eager_tight(bench: Bench) -> Iterator[Line]:
    """A block under autograd where memory is short."""
    from edgetune.profile.block import block_lines

    for spec, tokens, batch in _timely(bench, EAGER_TIGHT_SHAPES, 0):
        yield from block_lines(bench, spec, tokens, batch or 1, "eager-tight")


@probe("tensors", "all")
def _tensors(bench: Bench) -> Iterator[Line]:
    """What trainers do with tensors besides a block's arithmetic; what is done by default where it should be quick."""
    from edgetune.profile.tensors import tensor_lines

    blocks = tuple(_probed_block(width, heads) for width, heads in (_TI, _S if bench.quick else _B))
    for lines in tensor_lines(bench, blocks):
        if bench.late():
            if not bench.again:
                yield {"warning": "the time for probes was up before every update was timed; estimates are coarser."}
            return
        yield from lines


@probe("block", "lean-bf16")
def _block_lean_bf16(bench: Bench) -> Iterator[Line]:
    """A block as the lean trainer runs it with products in bfloat16, where the processor multiplies that fast."""
    from edgetune.profile.block import lean_block_lines

    if bench.bf16_flops is None:
        return
    useful = bench.bf16_flops >= _USEFUL_BF16 * (bench.fp32_flops or 0.0)
    for spec, tokens, batch in _timely(bench, BF16_SHAPES if useful else SLOW_BF16_SHAPES, 1):
        yield from lean_block_lines(bench, spec, tokens, batch or 1, "lean-bf16")


def _timely(bench: Bench, shapes: Shapes, quick: int) -> Iterator[tuple[ViTSpec, int, int | None]]:
    """Blocks to time, tokens and images of each, while there is time; the first few where it should be quick."""
    for (width, heads), tokens, batch in shapes[:quick] if bench.quick else shapes:
        if bench.late():
            return
        yield _probed_block(width, heads), tokens, batch


def _probed_block(width: int, heads: int) -> ViTSpec:
    return ViTSpec(name="probe", width=width, depth=1, heads=heads, patch_size=1, image_size=1)


def _batch_for(bench: Bench, spec: ViTSpec, tokens: int) -> int:
    """Images that keep a forward and backward pass near 0.2 s, and at least one."""
    flops = spec.block_flops(tokens)
    wanted_s = 0.1 if bench.quick else 0.2
    each_s = (flops.forward + flops.pass_gradient + flops.weight_gradient) / (0.6 * (bench.fp32_flops or 1e9))
    return max(1, min(16, math.floor(wanted_s / each_s)))
