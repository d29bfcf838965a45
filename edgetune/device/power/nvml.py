"""Discrete NVIDIA GPUs through the driver's own library, and only where it really answers.

On Jetson the library initialises, lists one device and then refuses every figure (HazyResearch/intelligence-per-watt
#40): a tool that takes the first two for a sensor reports 0 W. Here a GPU counts only after it has read out watts.
Function names and units (milliwatt, millijoule) are those of NVIDIA's NVML reference.
"""

from __future__ import annotations

from typing import Any

from edgetune.device.power.base import Facts, Judge, Reading, sum_known
from edgetune.device.system import System

_SUCCESS = 0


class Gpus:
    """All GPUs that report watts, summed; their energy counters, which not all have, are not asked."""

    scope = "gpu"
    name = "nvml"
    measured = True

    def __init__(self, system: System, library: Any, handles: dict[str, Any]) -> None:
        self.system = system
        self.library = library
        self.handles = handles
        self._judge = Judge(system)

    def read(self) -> Reading:
        """Watts of each GPU now."""
        rails = {name: self._watts(name, handle) for name, handle in self.handles.items()}
        return Reading(sum_known(rails.values()), rails)

    def facts(self) -> Facts:
        """That the rest of the machine is not in it; NVIDIA documents a one-second mean on Ampere and later."""
        return Facts(interval_s=1.0, notes=("graphics cards only: the rest of the machine is not in it",))

    def _watts(self, name: str, handle: Any) -> float | None:
        milliwatts = _unsigned(self.library, "nvmlDeviceGetPowerUsage", handle)
        return None if milliwatts is None else self._judge.believable_total(f"NVML {name}", milliwatts / 1e3)


def find_gpus(system: System, library: Any = None) -> Gpus | None:
    """The GPUs whose power can be read right now, or None. A foreign root never asks this machine's driver."""
    if library is None:
        library = _load() if system.live else None
    try:
        handles = _answering(library, system) if library is not None else {}
    except AttributeError as error:  # a stub in the library's place, as build images have it
        system.warn(f"libnvidia-ml.so.1 lacks a function ({error}); no graphics card is read through it.")
        return None
    return Gpus(system, library, handles) if handles else None


def _answering(library: Any, system: System) -> dict[str, Any]:
    """Handles of the GPUs that read out watts, by name."""
    from ctypes import byref, c_uint, c_void_p

    count = c_uint()
    if library.nvmlInit_v2() != _SUCCESS or library.nvmlDeviceGetCount_v2(byref(count)) != _SUCCESS:
        return {}
    judge = Judge(system)
    handles: dict[str, Any] = {}
    for index in range(min(count.value, 64)):
        handle, name = c_void_p(), f"gpu{index}"
        if library.nvmlDeviceGetHandleByIndex_v2(c_uint(index), byref(handle)) != _SUCCESS:
            continue
        milliwatts = _unsigned(library, "nvmlDeviceGetPowerUsage", handle)
        if milliwatts is not None and judge.believable_total(f"NVML {name}", milliwatts / 1e3) is not None:
            handles[name] = handle
    return handles


def _load() -> Any:
    """The driver's library, or None on a machine without one."""
    import ctypes

    try:
        return ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None


def _unsigned(library: Any, function: str, handle: Any) -> int | None:
    """An unsigned figure of one device, or None where the driver says it has none."""
    from ctypes import byref, c_uint

    value = c_uint()
    try:
        answer = getattr(library, function)(handle, byref(value))
    except AttributeError:
        return None
    return value.value if answer == _SUCCESS else None
