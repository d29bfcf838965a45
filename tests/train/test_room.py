"""What no plan could know is made room for before the first step."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from PIL import Image

from edgetune import schema
from edgetune.plan.bill import DECODE_BYTES
from edgetune.schema import Plan, Result
from edgetune.train.room import Beyond, beyond_plan

MIB = 1 << 20


def beyond(plan: Plan, decode_bytes: int, baseline: int | None = None) -> Beyond:
    memory: Any = SimpleNamespace(baseline_bytes=plan.predicted.memory.runtime if baseline is None else baseline)
    train: Any = SimpleNamespace(most_to_decode=lambda: (5, "photos/small.jpg"))
    val: Any = SimpleNamespace(most_to_decode=lambda: (decode_bytes, "photos/big.png"))
    return beyond_plan(plan, memory, (train, val))


def under(plan: Plan, cap_bytes: int, workers: int = 0) -> Plan:
    caps = msgspec.structs.replace(plan.caps, memory_bytes=cap_bytes)
    return msgspec.structs.replace(plan, caps=caps, workers=workers)


def test_what_the_plan_counts_on_is_nothing_beyond_it(plan_for: Any) -> None:
    plan = plan_for()
    assert beyond(plan, DECODE_BYTES) == (0, 0, [])
    assert beyond(plan, 0, baseline=plan.predicted.memory.runtime - MIB) == (0, 0, [])


def test_a_larger_bare_process_and_larger_images_are_told_apart(plan_for: Any) -> None:
    plan = under(plan_for(), 1 << 40)
    found = beyond(plan, DECODE_BYTES + 40 * MIB, baseline=plan.predicted.memory.runtime + 3 * MIB)
    assert found == (3 * MIB, 40 * MIB, [])
    assert beyond(under(plan, 1 << 40, workers=3), DECODE_BYTES + 40 * MIB).images_bytes == 120 * MIB


def test_images_that_may_break_the_cap_are_named(plan_for: Any) -> None:
    plan = plan_for()
    plan = under(plan, plan.predicted.peak_memory_bytes + 10 * MIB)
    assert beyond(plan, DECODE_BYTES + 9 * MIB).warnings == []
    (sentence,) = beyond(plan, DECODE_BYTES + 11 * MIB).warnings
    assert "photos/big.png" in sentence
    assert "17.0 MiB" in sentence
    assert "not progressive" in sentence


def test_knobs_are_turned_before_any_step_as_far_as_needed(stage: Any) -> None:
    made = stage(memory_bytes=8 << 30)
    made.plan = msgspec.structs.replace(made.plan, feature_cache=None)
    knobs = made.loop().knobs
    fits = (8 << 30) - made.plan.predicted.peak_memory_bytes
    knobs.make_room(0, fits, ())
    assert made.events() == []
    knobs.make_room(fits - MIB, MIB + 1, ())
    assert made.events() == ["tightened"]
    knobs.make_room(0, 1 << 40, ())
    assert made.events() == [*["tightened"] * (len(knobs.ladder) - 1), "memory"]  # which says that nothing is left
    assert made.engine.steps == []


def test_room_that_was_made_is_not_given_back(stage: Any) -> None:
    made = stage(epochs=60, memory_bytes=8 << 30)
    loop = made.loop()
    plan = loop.plan
    loop.knobs.make_room((8 << 30) - plan.predicted.peak_memory_bytes + 1, 0, ())
    assert loop.run() == "epochs"
    assert made.events() == ["tightened"]
    free = made.loop()
    free.knobs.tighten("as a test")
    assert free.run() == "epochs"
    assert made.events()[-1] == "loosened"


def test_large_images_ease_preparing_and_leave_steps_alone(stage: Any) -> None:
    """Over cached features: they are decoded between steps, while the cache is filled."""
    made = stage(memory_bytes=8 << 30)
    assert made.plan.feature_cache is not None
    loop = made.loop()
    made.engine.can_ease = True
    source = SimpleNamespace(ease=lambda: False)
    loop.knobs.make_room(0, 7 << 30, (source,))
    assert made.events() == []
    loop.knobs.make_room(0, 8 << 30, (source,))
    assert made.events() == ["tightened"]
    assert loop.progress.eased
    assert loop.progress.rung == 0


def test_no_cap_asks_for_no_room(stage: Any) -> None:
    made = stage()
    loop = made.loop()
    loop.governor.caps = msgspec.structs.replace(loop.governor.caps, memory_bytes=None)
    loop.knobs.make_room(1 << 50, 1 << 50, ())
    assert made.events() == []


def test_a_run_looks_at_the_headers_of_its_images(plan_for: Any, photos: Path, tmp_path: Path) -> None:
    """In a process of its own: this one is larger than any plan of a bare one says."""
    data = tmp_path / "photos"
    shutil.copytree(photos, data)
    Image.new("RGBA", (4000, 3000)).save(data / "train" / "blue" / "0.png")  # 149 MiB while it is decoded
    plan = plan_for(epochs=1)
    cap = plan.predicted.peak_memory_most_bytes
    assert cap is not None
    options = ["--image-size", "32", "--batch-size", "6", "--epochs", "1", "--threads", "1", "--workers", "0"]
    command = [sys.executable, "-m", "edgetune", "fit", str(data), "--model", "vit_nano_patch8_64", *options]
    command += ["--memory", str(cap), "--out", str(tmp_path / "run"), "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    result = schema.load(tmp_path / "run" / "result.json", Result)
    assert result.stopped_by == "epochs"
    (sentence,) = (sentence for sentence in result.warnings if "decoding an image" in sentence)
    assert str(data / "train" / "blue" / "0.png") in sentence
