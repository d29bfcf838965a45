"""Memory that ran out, in every word of it that is known: caught, and the step repeated at the next lower setting."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgetune.data.loader import Loader
from edgetune.errors import InputError
from edgetune.train.scarcity import OutOfMemoryError, means_no_memory, memory_errors

torch = pytest.importorskip("torch")

KINDS: dict[str, Callable[[], Exception]] = {
    "python": MemoryError,
    "numpy": lambda: np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("float32")),  # type: ignore[attr-defined]
    "mmap": lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
    "torch on the CPU": lambda: RuntimeError(
        '[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can\'t allocate memory: you tried to allocate'
        " 4294967296 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "torch on Windows and macOS": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"),
    "C++": lambda: RuntimeError("std::bad_alloc"),
    "oneDNN": lambda: RuntimeError("could not create a primitive"),
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total"),
    "CUDA, the old name": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    "CUDA, later": lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN without workspace": lambda: RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    "NvMap": lambda: RuntimeError("NvMapMemAllocInternalTagged: 1075072515 error 12"),
    "NvMap's handles": lambda: RuntimeError("NvMapMemHandleAlloc: error 0"),
    "torch on Tegra": lambda: RuntimeError(
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/opt/pytorch/c10/cuda/CUDACachingAllocator.cpp":995'
    ),
}  # fmt: skip
OTHERS = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("out of memory, said by somebody who does not allocate"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_known(kind: str) -> None:
    with pytest.raises(OutOfMemoryError) as caught, memory_errors():
        raise KINDS[kind]()
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert not means_no_memory(error)
    with pytest.raises(type(error)) as caught, memory_errors():
        raise error
    assert caught.value is error


def test_an_accelerator_gives_back_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied = []

    def empty() -> None:
        emptied.append(1)
        raise RuntimeError("CUDA error: out of memory")

    fake = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True, empty_cache=empty))
    monkeypatch.setitem(sys.modules, "torch", fake)
    with pytest.raises(OutOfMemoryError), memory_errors():
        raise MemoryError
    assert emptied == [1]


def failing(work: Callable[..., Any], kind: str, call: int) -> Callable[..., Any]:
    """`work`, whose so-manieth call runs out of memory."""
    calls = []

    def fail_once(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KINDS[kind]()
        return work(*arguments, **keywords)

    return fail_once


def events_of(run: Path) -> list[str]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["event"] for line in lines if line["kind"] == "event"]


@pytest.mark.parametrize("trainer", ["autograd", "lean"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_repeated_at_the_next_lower_setting(
    kind: str, trainer: str, plan_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetune.train.fit import fit
    from edgetune.train.lean.engine import LeanEngine
    from edgetune.train.torch_engine import TorchEngine

    lean = ("trainer=lean", "feature_cache=off", "trained_blocks=2", "saved_precision=fp32", "part_tokens=800")
    plan = (
        plan_for(method="edgetune", levers=lean, epochs=1) if trainer == "lean" else plan_for(method="full", epochs=1)
    )
    assert plan.trainer == trainer
    engine, name = (LeanEngine, "_step") if trainer == "lean" else (TorchEngine, "_accumulate")
    parts: list[int] = []
    work = failing(getattr(engine, name), kind, 2)

    def step(self: Any, *arguments: Any) -> Any:
        parts.append(arguments[-1])
        return work(self, *arguments)

    monkeypatch.setattr(engine, name, step)
    result = fit(plan, tmp_path / "run", quiet=True)
    assert result.stopped_by == "epochs"
    assert result.work.images == 24
    assert events_of(tmp_path / "run") == ["tightened"]
    whole, half = plan.micro_batch_size, plan.micro_batch_size // 2
    assert parts == [whole, whole, half, half, half]  # four steps; the second is repeated


@pytest.mark.parametrize("kind", ["python", "numpy"])
def test_reading_a_batch_is_repeated_too(
    kind: str, plan_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetune.data import loader, workers
    from edgetune.train.fit import fit

    monkeypatch.setattr(loader, "read_job", failing(workers.read_job, kind, 2))
    result = fit(plan_for(method="full", epochs=1), tmp_path / "run", quiet=True)
    assert (result.stopped_by, result.work.images) == ("epochs", 24)
    assert events_of(tmp_path / "run") == ["tightened"]


def test_memory_that_never_suffices_for_a_batch_ends_with_a_checkpoint(
    plan_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetune.train.fit import exit_code, fit

    plain = Loader.epoch

    def epoch(self: Loader, number: int, start_batch: int = 0, stop_batch: int | None = None) -> Any:
        for batch in plain(self, number, start_batch, stop_batch):
            if self.shuffle and batch.number == 2:
                raise MemoryError
            yield batch

    monkeypatch.setattr(Loader, "epoch", epoch)
    result = fit(plan_for(method="full", epochs=1), tmp_path / "run", quiet=True)
    assert (result.stopped_by, exit_code(result)) == ("memory", 4)
    assert events_of(tmp_path / "run")[-1] == "memory"
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_a_state_that_does_not_fit_is_not_called_damaged(
    plan_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetune.train import torch_engine
    from edgetune.train.fit import fit, resume

    fit(plan_for(method="full", epochs=1), tmp_path / "run", quiet=True)
    (tmp_path / "run" / "result.json").unlink()
    take_up = failing(torch_engine.TorchEngine._take_up, "torch on the CPU", 1)
    monkeypatch.setattr(torch_engine.TorchEngine, "_take_up", lambda *arguments: take_up(*arguments))
    with pytest.raises(InputError, match="could not be read into memory"):
        resume(tmp_path / "run", quiet=True)
    assert resume(tmp_path / "run", quiet=True).stopped_by == "epochs"


def test_a_model_that_does_not_fit_is_said_so(plan_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetune.train import torch_engine
    from edgetune.train.fit import fit

    monkeypatch.setattr(torch_engine, "load_model", failing(torch_engine.load_model, "torch on the CPU", 1))
    with pytest.raises(InputError, match="--model vit_nano_patch8_64 could not be read into memory"):
        fit(plan_for(method="full"), tmp_path / "run", quiet=True)
