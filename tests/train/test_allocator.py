"""Memory that libraries keep: settings are made where the plan needs them, and code goes only if the file brings it back."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgetune import allocator, schema
from edgetune.train import fit

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def test_a_users_own_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMES[0], "7")
    monkeypatch.setenv(NAMES[1], "")  # so that what is set below is undone
    monkeypatch.delenv(NAMES[1])
    allocator.keep_onednn_lean()
    assert [os.environ[name] for name in NAMES] == ["7", "32"]


@pytest.mark.parametrize(
    ("levers", "asked"),
    [
        (["precision=bf16"], True),
        (["frozen_precision=bf16"], True),
        (["precision=fp32", "frozen_precision=fp32"], False),
    ],
)
def test_only_products_in_bf16_on_changing_shapes_ask_for_it(
    levers: list[str], asked: bool, plan_for: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def stop(name: str) -> None:
        raise InterruptedError(name)  # before anything heavy

    monkeypatch.setattr(allocator, "keep_onednn_lean", lambda: calls.append("lean"))
    monkeypatch.setattr(fit, "import_module", stop)
    plan = plan_for(method="edgetune", levers=levers, engine="torch")
    with pytest.raises(InterruptedError):
        fit.fit(plan, tmp_path / "run", quiet=True)
    assert bool(calls) is asked


FAULTS = """
import resource, sys
from edgetune.schema import Plan, load
from edgetune.allocator import settle_malloc
from pathlib import Path
settle_malloc(load(Path(sys.argv[1]), Plan))
def fill():
    temporaries = [b"x" * (8 << 20) for _ in range(4)]  # so large that glibc, left alone, gives them back
for _ in range(3):
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


def faults_of(plan: schema.Plan, tmp_path: Path) -> float:
    """Pages that the kernel has to find anew for 32 MiB of temporaries."""
    schema.save(plan, tmp_path / "plan.json")
    words = [sys.executable, "-c", FAULTS, str(tmp_path / "plan.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_freed_memory_is_used_again_unless_memory_is_short(plan_for: Any, tmp_path: Path) -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("the C library has no mallopt")
    whole = plan_for(method="full", levers=["trainer=lean"], engine="torch")
    assert whole.feature_cache is None
    fast = msgspec.structs.replace(whole, allocator="fast")
    lean = msgspec.structs.replace(whole, allocator="lean")
    assert faults_of(fast, tmp_path) < 100
    assert faults_of(lean, tmp_path) > 8000


def test_only_code_as_the_file_has_it_is_let_go(tmp_path: Path) -> None:
    def mapping(place: str, permissions: str, name: str, changed_kib: int) -> str:
        return (
            f"{place} {permissions} 00001000 fe:01 4711 {name}\n"
            f"Rss: 64 kB\nAnonymous: {changed_kib} kB\nVmFlags: rd ex mr\n"
        )

    smaps = tmp_path / "smaps"
    smaps.write_text(
        mapping("7f0000000000-7f0000010000", "r-xp", "/some where/libthing.so.1", 0)
        + mapping("7f0000010000-7f0000020000", "r-xp", "/lib/libthing.so.1", 0)
        + mapping("7f0000020000-7f0000030000", "r-xp", "/lib/libthing.so.1", 4)  # a debugger's breakpoint
        + mapping("7f0000030000-7f0000040000", "r--p", "/lib/libthing.so.1", 0)
        + mapping("7f0000040000-7f0000050000", "rw-p", "/lib/libthing.so.1", 0)
        + mapping("7f0000050000-7f0000060000", "r-xp", "/lib/libother.so", 0)
        + "7f0000060000-7f0000070000 r-xp 00000000 00:00 0\nRss: 4 kB\nAnonymous: 0 kB\n"
    )
    assert allocator.code_of("libthing", smaps) == ((0x7F0000000000, 0x10000), (0x7F0000010000, 0x10000))


def test_without_procfs_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(library: str) -> tuple[tuple[int, int], ...]:
        raise FileNotFoundError(library)

    monkeypatch.setattr(allocator, "code_of", missing)
    allocator.release_code("libthing")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no procfs")
def test_a_library_works_on_without_its_code() -> None:
    code = """
import numpy
from edgetune.allocator import release_code
resident = lambda: 4096 * int(open("/proc/self/statm").read().split()[1])
before = resident()
release_code("_multiarray_umath")
assert before - resident() > 1 << 20
assert (numpy.arange(6.0).reshape(2, 3) @ numpy.ones((3, 2))).tolist() == [[3, 3], [12, 12]]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
