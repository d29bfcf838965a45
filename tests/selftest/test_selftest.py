"""The self-test: what it tries, what it says, and what it must never say."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgetune.data.folder import scan
from edgetune.device.power import Reading
from edgetune.device.system import System
from edgetune.profile.run import OUT_OF_TIME
from edgetune.schema import Compute, Selftest, load
from edgetune.selftest import fits as fits_module
from edgetune.selftest import run as run_module
from edgetune.selftest.fits import ENGINES, missing_part, try_fit, write_data
from edgetune.selftest.private import Private
from edgetune.selftest.run import run_selftest, sample
from tests.conftest import Ended


def test_everything_installed_here_is_tried_and_passes(edgetune: Callable[..., Ended], tmp_path: Path) -> None:
    ended = edgetune("selftest", "--json", "--out", tmp_path / "report.json")
    report = json.loads(ended.out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    checks = {check["name"]: check["passed"] for check in report["checks"]}
    failed = {name for name, passed in checks.items() if passed is False}
    assert ended.code == (1 if failed else 0)
    # What an emulator translates code into counts as the program's memory.
    excused = {f"memory with {engine}" for engine in ENGINES} if "EMULATED_CPU" in os.environ else set()
    assert failed <= excused, ended.out
    assert checks["memory"] is True
    installed = [engine for engine in ENGINES if missing_part(engine) is None]
    if not installed:
        pytest.skip("no engine is installed: nothing could be trained")
    out_of_time = (report["profile"]["compute"]["probe_error"] or "").startswith(OUT_OF_TIME)
    assert checks["probes"] is (None if out_of_time else True)
    assert [fit["engine"] for fit in report["fits"]] == installed
    for engine in ENGINES:
        print(f"{engine}: {missing_part(engine) or 'installed'} ; {report['versions'].get(engine)}")
        assert checks[f"fit with {engine}"] is (True if engine in installed else None)
    for fit in report["fits"]:
        assert fit["exit_status"] == 0
        assert 0 <= fit["accuracy"] <= 1
        assert fit["measured_peak_bytes"] > fit["baseline_bytes"] > 0
    loaded = load(tmp_path / "report.json", Selftest)
    assert loaded.passed == list(checks.values()).count(True)
    assert loaded.failed == len(failed)
    assert str(tmp_path) not in ended.out


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "torch", ("PIL", "a_package_nobody_has", "torch"))
    assert missing_part("torch") == "a_package_nobody_has"
    monkeypatch.setitem(ENGINES, "torch", ("PIL", "a_package_nobody_has.inside"))
    assert missing_part("torch") == "a_package_nobody_has.inside"


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", -4, None),
        ("import sys; sys.exit('no memory for this')", 1, "no memory for this"),
        ("import time; time.sleep(60)", -9, "did not end within"),
    ],
)
def test_a_run_that_fails_fails_the_self_test(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, status: int, said: str | None
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{script}"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setattr(fits_module, "_LIMIT_S", 1.0 if status == -9 else 60.0)
    tried = try_fit("torch", tmp_path, tmp_path / "profile.json", tmp_path)
    assert tried.exit_status == status
    assert (said or "") in (tried.said or "")
    (check,) = [check for check in run_module._checks_of_fits([tried]) if check.name == "fit with torch"]
    assert check.passed is False
    assert f"signal {-status}" in check.detail or f"exit status {status}" in check.detail


@pytest.mark.parametrize(
    ("error", "passed"),
    [
        (None, True),
        (f"{OUT_OF_TIME} 54 s; what they had measured by then is kept", None),
        ("the probes crashed", False),
    ],
)
def test_probes_that_crash_fail_and_slow_ones_do_not(
    monkeypatch: pytest.MonkeyPatch, error: str | None, passed: bool | None
) -> None:
    from edgetune.profile import profile_device

    monkeypatch.setattr(run_module, "missing_part", lambda engine: None)
    profile = msgspec.structs.replace(profile_device(probes=False), compute=Compute(probe_error=error))
    (check,) = [check for check in run_module._checks_of_board(profile, None) if check.name == "probes"]
    assert check.passed is passed


def test_the_data_is_small_and_whole(tmp_path: Path) -> None:
    folder = scan(write_data(tmp_path / "digits"))
    assert (len(folder.classes), len(folder.train), len(folder.val)) == (3, 24, 24)


class Stuttering:
    """A sensor that answers every second time."""

    name, scope, measured = "test", "module", True

    def __init__(self) -> None:
        self.count = 0

    def read(self) -> Reading:
        self.count += 1
        return Reading(float(self.count) if self.count % 2 else None)


def test_a_sensor_is_read_for_a_second() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    found = sample(Stuttering(), lambda: now[0], sleep)
    assert found.seconds == pytest.approx(1.0, abs=0.06)
    assert found.readings in (21, 22)
    assert found.failed == found.readings // 2
    assert found.distinct == found.readings - found.failed
    assert found.least_w == 1.0
    assert found.mean_w == pytest.approx(11.0, abs=1.0)


SECRETS = ("4c:cc:6a:01:02:03", "10000000abcdef12", "alice", "alices-jetson", "0f9c2f3e8d7b4a6c9e1d2b3a4c5d6e7f")


def test_nothing_personal_is_told() -> None:
    private = Private(["alice", "alices-jetson"], ["/home/alice"], ["10000000abcdef12"])
    told = private.clean(
        {
            "warnings": [
                "/home/alice/photos can't be read by alice on alices-jetson (eth0 4c:cc:6a:01:02:03).",
                "serial 10000000abcdef12, machine 0f9c2f3e8d7b4a6c9e1d2b3a4c5d6e7f",
            ],
            "memory": {
                "limit_source": "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/memory.max",
                "total_bytes": 12,
            },
            "other": "in /home/bob/x and 12345678-1234-1234-1234-123456789abc",
        }
    )
    text = json.dumps(told)
    assert not [secret for secret in (*SECRETS, "1000.", "bob", "123456789abc") if secret in text]
    assert told["warnings"][0] == "~/photos can't be read by <name> on <name> (eth0 <MAC>)."
    assert told["memory"]["total_bytes"] == 12


def test_terms_of_the_report_stay_what_they_are() -> None:
    private = Private(["torch", "pi", "ubuntu"], ["/"], [])
    assert private.clean({"engine": "torch", "rails": ["VDD_IN"]}) == {"engine": "torch", "rails": ["VDD_IN"]}
    assert private.clean("Raspberry pi, Ubuntu on ubuntu") == "Raspberry pi, Ubuntu on ubuntu"


def test_a_board_with_a_serial_number_keeps_it_to_itself(tmp_path: Path) -> None:
    (tmp_path / "proc" / "device-tree").mkdir(parents=True)
    (tmp_path / "proc" / "device-tree" / "serial-number").write_bytes(b"1424319012345\0")
    (tmp_path / "proc" / "cpuinfo").write_text("Serial\t\t: 10000000feedbeef\n")
    private = Private.of(System(tmp_path))
    assert private.clean_text("x 1424319012345 y 10000000feedbeef") == "x <serial> y <serial>"
    host = socket.gethostname()
    if len(host) >= 3 and host.lower() not in ("localhost", "debian", "ubuntu"):
        assert host not in private.clean_text(f"on {host} today")


def test_a_report_is_cleaned_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetune.profile import profile_device

    quiet = profile_device(probes=False)
    monkeypatch.setattr(run_module, "profile_device", lambda quick: _warned(quiet, "see /home/alice/x"))
    monkeypatch.setattr(run_module, "missing_part", lambda engine: "it")
    monkeypatch.setattr(run_module, "_SENSOR_S", 0.0)
    report = run_selftest()
    assert report.profile.warnings == ["see /home/<user>/x"] or "alice" not in str(report.profile.warnings)
    assert [check.passed for check in report.checks if check.name.startswith("fit")] == [None, None]


def _warned(profile, sentence):
    return msgspec.structs.replace(profile, warnings=[sentence])
