"""What planning believes of the machine: profiles of other boards, and profiles that no longer hold."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgetune.device.board import identify
from edgetune.device.memory import read_memory
from edgetune.device.system import System
from edgetune.errors import InputError
from edgetune.plan import machine as machine_module
from edgetune.plan import make_plan
from edgetune.plan.machine import read_machine, refuse_other_board
from edgetune.schema import Board, Compute, Modes, Profile
from tests.plan.conftest import GIB, make_profile

MODEL = "vit_nano_patch8_64"
ORIN = Board(name="Orin Nano", family="jetson-orin", module="p3767-0005", soc="tegra234", arch="aarch64")


def changed(profile: Profile, **parts: object) -> Profile:
    return msgspec.structs.replace(profile, **parts)


def test_a_profile_of_another_board_is_refused_unless_the_plan_is_for_it(photos: Path) -> None:
    there = changed(make_profile(), board=ORIN)
    with pytest.raises(InputError, match=r"--profile is of another board \(Orin Nano; this is .*--elsewhere"):
        make_plan(photos, model=MODEL, profile=there)
    plan = make_plan(photos, model=MODEL, profile=there, elsewhere=True)
    assert plan.predicted.total_s is not None


def test_another_size_of_memory_is_another_board() -> None:
    profile = make_profile()
    memory = msgspec.structs.replace(profile.memory, total_bytes=3 * GIB, available_bytes=2 * GIB)
    with pytest.raises(InputError, match=r"with 3\.00 GiB"):
        refuse_other_board(changed(profile, memory=memory))
    there = read_machine(changed(profile, memory=memory), None, "cpu", elsewhere=True)
    assert there.memory.available_bytes == 2 * GIB


def test_memory_is_what_is_free_now_though_a_kernel_update_moved_its_size() -> None:
    live = read_memory(System())
    assert live.total_bytes is not None
    then = msgspec.structs.replace(live, total_bytes=live.total_bytes + (300 << 10), available_bytes=5 * GIB + 7)
    assert read_machine(changed(make_profile(), memory=then), None, "cpu").memory.available_bytes != 5 * GIB + 7


def test_a_container_with_fewer_cores_trains_with_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "usable_cores", lambda: 2)
    compute = msgspec.structs.replace(make_profile().compute, threads=8)
    here = read_machine(changed(make_profile(), compute=compute), None, "cpu")
    assert here.threads == 2
    assert any("number of threads was 8, now it is 2" in warning for warning in here.warnings)
    there = read_machine(changed(make_profile(), compute=compute), None, "cpu", elsewhere=True)
    assert there.threads == 8


def test_probes_that_ended_early_are_not_called_none() -> None:
    compute = msgspec.structs.replace(make_profile().compute, probe_error="the probes were killed")
    (warning,) = read_machine(changed(make_profile(), compute=compute), None, "cpu").warnings
    assert "the profile's probes are not complete (the probes were killed)" in warning
    nothing = Compute(probe_error="no probe was asked for")
    warnings = read_machine(changed(make_profile(), compute=nothing), None, "cpu").warnings
    assert any("the profile has no probes (no probe" in warning for warning in warnings)


def test_what_nobody_knows_does_not_differ() -> None:
    here = identify(System())
    refuse_other_board(changed(make_profile(), board=Board(name="unknown", family=here.family)))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"threads": 64}, "number of threads was 64, now it is 2"),
        ({"engine": "torch", "engine_version": "1.0.0+old"}, "torch was 1.0.0, now it is"),
    ],
)
def test_a_profile_that_no_longer_holds_is_used_with_a_warning(parts: dict[str, object], words: str) -> None:
    profile = make_profile()
    compute: Compute = msgspec.structs.replace(profile.compute, **parts)
    machine = read_machine(changed(profile, compute=compute), None, "cpu", 2)
    assert any(words in warning for warning in machine.warnings)
    assert machine.rates is not None


def test_another_power_mode_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.plan.certainty.read_modes", lambda system: Modes(current="15W", cpu_max_hz=[1000]))
    profile = changed(make_profile(), modes=Modes(current="MAXN", cpu_max_hz=[2000, 1500]))
    warnings = read_machine(profile, None, "cpu").warnings
    assert any("power mode was MAXN, now it is 15W" in warning for warning in warnings)
    assert any("clock limit was 2000, now it is 1000" in warning for warning in warnings)


def test_a_profile_that_holds_is_used_without_a_word() -> None:
    assert read_machine(make_profile(), None, "cpu", 2).warnings == []
