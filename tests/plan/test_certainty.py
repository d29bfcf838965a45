"""Bounds that widen where less is known, and say by how much."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from edgetune.device.system import System
from edgetune.errors import InfeasibleError
from edgetune.plan import make_plan
from edgetune.plan.bill import most_bytes
from edgetune.plan.certainty import USUAL_TIME_FACTOR, certainty
from edgetune.plan.explain import print_plan
from edgetune.plan.job import job_of
from edgetune.schema import Modes, Plan, Profile
from tests.plan.conftest import make_profile

MIB = 1 << 20
MODEL = "vit_nano_patch8_64"


def with_compute(profile: Profile, **fields: object) -> Profile:
    return msgspec.structs.replace(profile, compute=msgspec.structs.replace(profile.compute, **fields))


def with_modes(profile: Profile, **fields: object) -> Profile:
    return msgspec.structs.replace(profile, modes=Modes(**fields))  # type: ignore[arg-type]


def doubted(plan: Plan) -> int:
    """What the bound of memory leaves for a larger bare process, beyond what any bill may be short."""
    at_most = plan.predicted.peak_memory_most_bytes
    assert at_most is not None
    usual = most_bytes(job_of(plan), plan.predicted.memory.runtime)
    assert usual > plan.predicted.peak_memory_bytes
    return at_most - usual


def test_a_profile_that_holds_leaves_the_usual_doubt_about_time_alone(photos: Path) -> None:
    plan = make_plan(photos, model=MODEL, profile=make_profile(), threads=2)
    assert (doubted(plan), plan.predicted.time_factor) == (0, USUAL_TIME_FACTOR)
    assert plan.warnings == []
    assert any(f"off by a factor of {USUAL_TIME_FACTOR:g}, either way" in sentence for sentence in plan.why)


@pytest.mark.parametrize(
    ("compute", "modes", "words", "wider_time", "wider_memory"),
    [
        ({"threads": 8}, {}, "number of threads was 8, now it is 2", 4.0, False),
        ({"threads": 1}, {}, "number of threads was 1, now it is 2", 1.25, False),
        ({"engine_version": "1.0.0+old"}, {}, "torch was 1.0.0, now it is", 1.3, True),
        ({"device": "cuda"}, {}, "ran on cuda, the plan is for cpu", 10.0, False),
        ({"block_costs": []}, {}, "timed no transformer block", 2.0, False),
        ({}, {"current": "MAXN"}, "power mode was MAXN, now it is 15W", 2.0, False),
        ({}, {"cpu_max_hz": [3000, 1500]}, "clock limit was 3000, now it is 1000", 3.0, False),
        ({}, {"current": "MAXN", "cpu_max_hz": [500]}, "clock limit was 500, now it is 1000", 4.0, False),
    ],
)
def test_what_no_longer_holds_widens_the_bounds_and_says_by_how_much(
    compute: dict[str, object],
    modes: dict[str, object],
    words: str,
    wider_time: float,
    wider_memory: bool,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = Modes(current="15W", cpu_max_hz=[1000])
    monkeypatch.setattr("edgetune.plan.certainty.read_modes", lambda system: now)
    profile = with_modes(with_compute(make_profile(), **compute), **modes)
    plan = make_plan(photos, model=MODEL, profile=profile, threads=2)
    assert plan.predicted.time_factor == pytest.approx(USUAL_TIME_FACTOR * wider_time)
    assert (doubted(plan) > 0) == wider_memory
    (warning,) = (sentence for sentence in plan.warnings if words in sentence)
    assert "by a further factor of" in warning
    assert ("leaves room for that" in warning) == wider_memory
    out = io.StringIO()
    print_plan(plan, Console(file=out, width=80))
    assert "at most" in out.getvalue()


def test_without_a_profile_room_is_left_for_a_larger_process(photos: Path) -> None:
    plan = make_plan(photos, model=MODEL, memory_bytes=2000 * MIB)
    assert doubted(plan) == int(0.15 * plan.predicted.memory.runtime)
    assert plan.predicted.time_factor is None
    assert any("15% more than planned" in warning for warning in plan.warnings)
    assert any("left free for a bare process" in sentence for sentence in plan.why)


def test_the_wider_bound_is_what_a_cap_holds(photos: Path) -> None:
    """The smallest feasible cap of an unsure planner is larger by its doubt, and its plans stay below it."""
    sure = make_profile()
    unsure = with_compute(sure, engine_version="1.0.0", engine="torch")
    nearest = []
    for profile in (sure, unsure):
        with pytest.raises(InfeasibleError) as caught:
            make_plan(photos, model=MODEL, profile=profile, memory_bytes=MIB, engine="torch")
        least = caught.value.nearest.memory_bytes
        assert least is not None
        nearest.append(least)
        plan = make_plan(photos, model=MODEL, profile=profile, memory_bytes=least, engine="torch")
        assert plan.predicted.peak_memory_most_bytes == least
    margin = int(0.10 * plan.predicted.memory.runtime)
    assert nearest[1] - nearest[0] == margin > 0
    assert doubted(plan) == margin


def test_doubts_add_up_and_another_board_is_not_compared() -> None:
    profile = with_compute(make_profile(), threads=8, engine_version="1.0.0")
    both = certainty(profile, System(), "cpu", 2)
    assert both.time_factor == pytest.approx(USUAL_TIME_FACTOR * 4.0 * 1.3)
    assert len(both.doubts) == len(both.warnings()) == 2
    assert certainty(profile, System(), "cpu", 2, elsewhere=True).doubts == ()


def test_what_was_never_held_against_a_gpu_says_so(photos: Path) -> None:
    plan = make_plan(photos, model=MODEL, profile=with_compute(make_profile(), device="cuda"), device="cuda")
    assert any("never held against a GPU" in warning for warning in plan.warnings)
    assert doubted(plan) > 0
