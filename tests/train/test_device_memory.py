"""A GPU's memory in a run's figures: counted as torch's allocator counts it, and in the peak where it is the machine's.

No GPU is needed: torch's counters, or the whole card, are stand-ins.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from edgetune import schema
from edgetune.train import torch_start
from edgetune.train.fit import fit
from edgetune.train.folder import RunFolder
from edgetune.train.torch_base import CudaMemory
from edgetune.train.torch_engine import TorchEngine

MIB = 1 << 20


class Counters:
    """What torch says of its CUDA allocator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, initialised: bool) -> None:
        self.asked: list[str] = []
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
        for name, answer in (("memory_reserved", 3), ("max_memory_reserved", 5), ("reset_peak_memory_stats", None)):
            monkeypatch.setattr(torch.cuda, name, partial(self.answer, name, answer))

    def answer(self, name: str, answer: int | None) -> int | None:
        self.asked.append(name)
        return answer


def test_torch_s_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters(monkeypatch, initialised=True)
    memory = CudaMemory(unified=True)
    assert (memory.reserved_bytes(), memory.peak_bytes()) == (3, 5)
    memory.reset_peak()
    assert counters.asked[-1] == "reset_peak_memory_stats"


def test_before_cuda_is_used_there_is_nothing_and_asking_begins_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters(monkeypatch, initialised=False)
    memory = CudaMemory(unified=True)
    memory.reset_peak()
    assert (memory.reserved_bytes(), memory.peak_bytes()) == (0, 0)
    assert counters.asked == []


@pytest.mark.parametrize(("unified", "expected"), [(True, True), (False, False), (None, False)])
def test_the_profile_says_whether_a_gpu_has_memory_of_its_own(
    unified: bool | None, expected: bool, plan_for: Any, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    profile = schema.Profile(
        board=schema.Board(name="Test board", family="test"),
        memory=schema.Memory(unified=unified),
        power=schema.Power(),
        modes=schema.Modes(),
        throttle={},
        compute=schema.Compute(),
        warnings=[],
        edgetune_version="0",
        created=schema.now(),
    )
    schema.save(profile, folder.profile)
    plan = plan_for(method="head")
    assert torch_start.device_memory(plan, folder) is None
    found = torch_start.device_memory(msgspec.structs.replace(plan, device="cuda"), folder)
    assert found.unified is expected


class Card:
    """A GPU whose allocator goes from nothing to 512 MiB in the first step."""

    unified = True
    resets = 0

    def reserved_bytes(self) -> int:
        return self.peak_bytes()

    def peak_bytes(self) -> int:
        return 512 * MIB if self.resets else 0

    def reset_peak(self) -> None:
        self.resets += 1


def test_a_run_s_peak_has_what_the_gpu_took_of_the_machine(
    plan_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card()
    monkeypatch.setattr(torch_start, "device_memory", lambda plan, folder: card)
    memory = fit(plan_for(method="head", epochs=1), tmp_path / "run", quiet=True).memory
    assert memory.measured_peak_bytes - memory.baseline_bytes >= 512 * MIB
    assert card.resets == 1


@pytest.mark.parametrize("unified", [True, False])
def test_what_is_free_of_a_gpu_s_memory_counts_where_it_is_its_own(
    unified: bool, plan_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a board that shares its memory, a page cache full of images leaves little "free" and much available."""
    card = Card()
    card.unified = unified
    monkeypatch.setattr(torch_start, "device_memory", lambda plan, folder: card)
    monkeypatch.setattr(TorchEngine, "device_room_bytes", lambda self: MIB)
    fit(plan_for(method="head", epochs=1), tmp_path / "run", quiet=True)
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert any("accelerator" in line.get("message", "") for line in lines) is not unified
