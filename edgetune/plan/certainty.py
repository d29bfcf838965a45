"""How far a prediction may be off, and why: what of a profile no longer holds, and what nobody measured.

Predictions themselves are never moved by this; their upper bounds are. A doubt about the bare process widens the bound
of memory, which is what the search holds against the cap; a doubt about speed widens times and energies, in both
directions. Doubts multiply. Only the first figure is measured (docs/planner.md, "Time and energy"); clocks and threads
are arithmetic; the others are round numbers for what those changes usually do, and say so.
"""

from __future__ import annotations

from importlib import metadata
from typing import NamedTuple

from edgetune.device.modes import read_modes
from edgetune.device.system import System
from edgetune.schema import Compute, Profile

# The twelve plans of the design series of benchmarks/predict_time.py lay no further off, with a profile that holds; of
# 99 later ones twelve did, five of them by a price of bf16 that is mended since.
USUAL_TIME_FACTOR = 1.7
_GEMM_ONLY, _UNTIMED_UPDATES, _OTHER_MODE, _OTHER_LIBRARY, _OTHER_DEVICE, _MORE_THREADS = 2.0, 1.2, 2.0, 1.3, 10.0, 1.25
# Of the bare process: libraries differ in size from release to release, and from build to build.
_GUESSED_PROCESS, _OTHER_PROCESS = 0.15, 0.10
_UNPROVEN_CUDA = 0.25  # of the bare process, whose share of a CUDA context was never held against a GPU


class Doubt(NamedTuple):
    """One reason to be less sure."""

    reason: str  # what is so, a clause
    time: float = 1.0  # factor, either way
    process: float = 0.0  # share of the bare process that there may be more of it

    def sentence(self) -> str:
        """What is so, and what it does to the bounds."""
        effects = []
        if self.time > 1:
            effects.append(f"times and energies may be off by a further factor of {self.time:.3g}")
        if self.process > 0:
            effects.append(f"it may take {self.process:.0%} more than planned, and the plan leaves room for that")
            if self.time > 1:
                effects[-1] = f"the bare process {effects[-1]}".replace("it may", "may")
        return f"{self.reason}: {'; '.join(effects)}."


class Certainty(NamedTuple):
    """All of them together."""

    time_factor: float
    process_share: float
    doubts: tuple[Doubt, ...]

    def warnings(self) -> list[str]:
        """A sentence for each doubt, with what it does to the bounds."""
        return [doubt.sentence() for doubt in self.doubts]


def certainty(
    profile: Profile | None, system: System, device: str, threads: int | None, *, elsewhere: bool = False
) -> Certainty:
    """How far predictions may be off on this machine.

    Args:
        profile: that they are made from.
        system: this machine.
        device: that will train.
        threads: that will train; None: the profile's.
        elsewhere: the plan is for the profile's board, which is not this one: nothing here can be compared.
    """
    doubts = []
    if profile is None:
        doubts.append(
            Doubt(
                "no --profile was given (run `edgetune profile --out profile.json` once): time and energy are not"
                " predicted and the bare process's memory is a guess",
                process=_GUESSED_PROCESS,
            )
        )
    else:
        compute = profile.compute
        if compute.runtime_bytes is None:
            doubts.append(Doubt("the bare process's memory is a guess", process=_GUESSED_PROCESS))
        if not compute.block_costs and compute.gemm_flops.get("fp32"):
            doubts.append(
                Doubt(
                    "the profile timed no transformer block: times are guessed from its matrix product", time=_GEMM_ONLY
                )
            )
        elif compute.block_costs and not compute.tensor_costs:
            doubts.append(
                Doubt(
                    "the profile timed no updates and no packing of saved tensors (run `edgetune profile` again): they"
                    " are guessed from its rate of copying",
                    time=_UNTIMED_UPDATES,
                )
            )
        if compute.device not in (None, device):
            doubts.append(
                Doubt(f"the profile's probes ran on {compute.device}, the plan is for {device}", time=_OTHER_DEVICE)
            )
        if not elsewhere:
            doubts += _changes(profile, system, threads)
    if device == "cuda":
        doubts.append(Doubt("the bill was never held against a GPU's memory", process=_UNPROVEN_CUDA))
    time, share = USUAL_TIME_FACTOR, 0.0
    for doubt in doubts:
        time *= doubt.time
        share += doubt.process
    return Certainty(time, share, tuple(doubts))


def _changes(profile: Profile, system: System, threads: int | None) -> list[Doubt]:
    """What is no longer as it was when the profile was made, where that moves its figures."""
    compute, modes, then = profile.compute, read_modes(system), profile.modes
    doubts = []
    if None not in (then.current, modes.current) and then.current != modes.current:
        doubts.append(_changed("power mode", then.current, modes.current, Doubt("", time=_OTHER_MODE)))
    was, now = max(then.cpu_max_hz, default=0), max(modes.cpu_max_hz, default=0)
    if was and now and was != now:
        doubts.append(_changed("clock limit", was, now, Doubt("", time=max(was / now, now / was))))
    if compute.threads is not None and threads is not None and compute.threads != threads:
        slower = max(compute.threads / threads, _MORE_THREADS)
        doubts.append(_changed("number of threads", compute.threads, threads, Doubt("", time=slower)))
    there, here = _release(compute.engine_version), _release(_installed(compute))
    if None not in (there, here) and there != here:
        changed = Doubt("", time=_OTHER_LIBRARY, process=_OTHER_PROCESS)
        doubts.append(_changed(str(compute.engine), there, here, changed))
    return doubts


def _changed(name: str, there: object, here: object, doubt: Doubt) -> Doubt:
    reason = f"the profile's {name} was {there}, now it is {here} (run `edgetune profile` again)"
    return doubt._replace(reason=reason)


def _installed(compute: Compute) -> str | None:
    """Version of the profile's engine as it is now."""
    try:
        return metadata.version(compute.engine) if compute.engine else None
    except metadata.PackageNotFoundError:
        return None


def _release(version: str | None) -> str | None:
    """A version without the label of its build."""
    return None if version is None else version.split("+")[0]
