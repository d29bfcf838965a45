"""The self-test from its first reading to its report."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import msgspec

from edgetune import schema
from edgetune.__about__ import __version__
from edgetune.device.board import DEVICE_TREES, identify_entry
from edgetune.device.memory import usable_bytes
from edgetune.device.power import PowerSource, close_power, find_power
from edgetune.device.system import System
from edgetune.profile import profile_device
from edgetune.profile.run import OUT_OF_TIME
from edgetune.schema import Check, FitTry, Profile, Selftest, SensorSample
from edgetune.selftest.fits import ENGINES, missing_part, try_fit, write_data
from edgetune.selftest.private import Private
from edgetune.units import format_power, format_size

_PACKAGES = ("numpy", "pillow", "torch", "torchvision", "onnx", "onnxruntime", "msgspec", "psutil", "safetensors")
_SENSOR_S, _SENSOR_INTERVAL_S = 1.0, 0.05
_MOST_NAMES = 40  # of sensors; enough for any board


def run_selftest(say: Callable[[str], None] = lambda _: None) -> Selftest:
    """Try everything that can be tried in a minute or two.

    Args:
        say: told in a few words what is done next, since a slow board takes its time.
    """
    system = System()
    say("reading the board and timing its probes")
    profile = profile_device(quick=True)
    say("reading the power sensor for a second")
    sensor = _sample_power(system)
    fits = []
    with tempfile.TemporaryDirectory(prefix="edgetune-selftest-") as name:
        folder = Path(name)
        schema.save(profile, folder / "profile.json")
        data = write_data(folder / "digits")
        for engine in ENGINES:
            if missing_part(engine) is None:
                say(f"fine-tuning a small model with {engine}")
                fits.append(try_fit(engine, data, folder / "profile.json", folder))
        private = Private.of(system)
        private.homes.append(name)
    checks = [*_checks_of_board(profile, sensor), *_checks_of_fits(fits)]
    report = Selftest(
        checks=checks,
        passed=sum(check.passed is True for check in checks),
        failed=sum(check.passed is False for check in checks),
        versions=_versions(),
        facts=_facts(system),
        profile=profile,
        sensor=sensor,
        fits=fits,
        edgetune_version=__version__,
        created=schema.now(),
    )
    return msgspec.convert(private.clean(msgspec.to_builtins(report)), Selftest)


def sample(source: PowerSource, clock: Callable[[], float], sleep: Callable[[float], None]) -> SensorSample:
    """Read a source as often as is sensible for a second."""
    began, readings, totals = clock(), 0, list[float]()
    while True:
        total = source.read().total_w
        readings += 1
        if total is not None:
            totals.append(total)
        if clock() - began >= _SENSOR_S:
            break
        sleep(_SENSOR_INTERVAL_S)
    return SensorSample(
        source=source.name,
        scope=source.scope,
        measured=source.measured,
        seconds=round(clock() - began, 3),
        readings=readings,
        failed=readings - len(totals),
        distinct=len(set(totals)),
        least_w=min(totals, default=None),
        mean_w=sum(totals) / len(totals) if totals else None,
        most_w=max(totals, default=None),
    )


def _sample_power(system: System) -> SensorSample | None:
    source = find_power(system, *identify_entry(system))
    if source is None:
        return None
    try:
        return sample(source, time.monotonic, time.sleep)
    finally:
        close_power(source)


def _checks_of_board(profile: Profile, sensor: SensorSample | None) -> list[Check]:
    board, compute = profile.board, profile.compute
    known = not board.family.startswith("generic")
    found = [
        Check(
            name="board",
            passed=True if known else None,
            detail=board.name if known else f"{board.name}: no file of the catalogue describes it",
        )
    ]
    free = usable_bytes(profile.memory)
    found.append(Check(name="memory", passed=free is not None, detail=f"{format_size(free)} may be used"))
    if sensor is None or not sensor.measured:
        why = profile.power.note or "no sensor was found"
        found.append(Check(name="power sensor", passed=None, detail=why))
    else:
        detail = f"{sensor.source}: {sensor.readings} readings in {sensor.seconds} s, {sensor.failed} of them empty"
        detail += f", mean {format_power(sensor.mean_w)}" if sensor.mean_w is not None else ""
        found.append(Check(name="power sensor", passed=sensor.failed < sensor.readings, detail=detail))
    timed: bool | None = compute.probe_error is None
    # Without an engine there is nothing to time, and that is a way to install edgetune; a slow board is no broken one.
    if all(missing_part(engine) for engine in ENGINES) or (compute.probe_error or "").startswith(OUT_OF_TIME):
        timed = None
    speed = f"{compute.engine} {compute.engine_version}, {compute.device}, {compute.threads} threads"
    found.append(Check(name="probes", passed=timed, detail=compute.probe_error or speed))
    return found


def _checks_of_fits(fits: list[FitTry]) -> list[Check]:
    found = []
    tried = {fit.engine: fit for fit in fits}
    for engine in ENGINES:
        fit = tried.get(engine)
        if fit is None:
            detail = f"{missing_part(engine)} is not installed"
            found.append(Check(name=f"fit with {engine}", passed=None, detail=detail))
            continue
        whole = fit.exit_status == 0 and fit.accuracy is not None
        ending = f"exit status {fit.exit_status}" if fit.exit_status >= 0 else f"signal {-fit.exit_status}"
        detail = f"{fit.seconds:.1f} s on {fit.device}" if whole else f"{ending}: {fit.said or 'it said nothing'}"
        found.append(Check(name=f"fit with {engine}", passed=whole, detail=detail))
        if whole and fit.predicted_peak_bytes is not None and fit.measured_peak_bytes is not None:
            found.append(
                Check(
                    name=f"memory with {engine}",
                    passed=fit.measured_peak_bytes <= fit.predicted_peak_bytes,
                    detail=f"peak {format_size(fit.measured_peak_bytes)},"
                    f" predicted {format_size(fit.predicted_peak_bytes)}",
                )
            )
    return found


def _versions() -> dict[str, str | None]:
    """Of what takes part; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "kernel": platform.release()}
    found["libc"] = " ".join(platform.libc_ver()).strip() or None
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _facts(system: System) -> dict[str, list[str]]:
    """What tells boards apart, as the machine says it: with it a board that is not known yet becomes a file."""

    def texts(pattern: str) -> list[str]:
        found = (system.text(path) for path in system.glob(pattern)[:_MOST_NAMES])
        return [text[:200] for text in found if text]

    trees = (system.text(f"{base}/compatible") for base in DEVICE_TREES)
    compatible = next((text for text in trees if text), "")
    release = (system.text("/etc/nv_tegra_release") or "").partition("\n")[0]
    return {
        "compatible": [part for part in compatible.split("\0") if part],
        "tegra_release": [release] if release else [],
        "hwmon": texts("/sys/class/hwmon/hwmon*/name"),
        "hwmon_labels": texts("/sys/class/hwmon/hwmon*/in*_label"),
        "thermal_zones": texts("/sys/class/thermal/thermal_zone*/type"),
        "cgroup_controllers": (system.text("/sys/fs/cgroup/cgroup.controllers") or "").split(),
        "container": [mark for mark in ("/.dockerenv", "/run/.containerenv") if system.exists(mark)],
    }
