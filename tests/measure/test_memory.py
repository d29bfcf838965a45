"""The peak meter finds what was allocated, and says what it can't find."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from edgetune.measure.memory import PeakMeter, _is_memory

MIB = 1 << 20
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no procfs on this system")


def in_fresh_process(body: str) -> list[int]:
    """Run a body in a process of its own, where nothing else allocates; the integers it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@linux
def test_peak_is_what_was_allocated_above_the_baseline() -> None:
    held, peak, after = in_fresh_process("""
        from edgetune.measure import PeakMeter
        meter = PeakMeter.start()
        block = bytearray(96 << 20)
        held = meter.current_bytes() - meter.baseline_bytes
        del block
        print(held, meter.peak_bytes() - meter.baseline_bytes, meter.current_bytes() - meter.baseline_bytes)
    """)
    assert 95 * MIB < held < 99 * MIB
    assert 95 * MIB < peak < 99 * MIB
    assert after < 4 * MIB


@linux
def test_what_warm_up_needed_in_passing_does_not_count() -> None:
    (peak,) = in_fresh_process("""
        from edgetune.measure import PeakMeter
        meter = PeakMeter.start(lambda: len(bytearray(128 << 20)))
        assert not meter.warnings, meter.warnings
        print(meter.peak_bytes() - meter.baseline_bytes)
    """)
    assert peak < 8 * MIB


@linux
def test_children_count_by_their_share() -> None:
    alone, peak = in_fresh_process("""
        import subprocess, sys
        from edgetune.measure import PeakMeter
        meter = PeakMeter.start(children=True)
        alone = meter.current_bytes()
        child = "import time; block = bytearray(64 << 20); print('ready', flush=True); time.sleep(30)"
        with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            meter.current_bytes()
            import time; time.sleep(0.3)
            process.kill()
        meter.stop()
        print(alone, meter.peak_bytes())
    """)
    assert peak - alone > 60 * MIB


@linux
def test_files_in_memory_count_when_told(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("no /dev/shm")
    told, disk = in_fresh_process(f"""
        import os, pathlib, tempfile
        from edgetune.measure import PeakMeter
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            meter = PeakMeter.start(shared_folders=[pathlib.Path(folder)])
            on_disk = PeakMeter.start(shared_folders=[pathlib.Path({str(tmp_path)!r})])
            (pathlib.Path(folder) / "cache").write_bytes(bytes(16 << 20))
            pathlib.Path({str(tmp_path)!r}, "cache").write_bytes(bytes(16 << 20))
            meter.stop(), on_disk.stop()
        print(meter.peak_bytes() - meter.baseline_bytes, on_disk.peak_bytes() - on_disk.baseline_bytes)
    """)
    if _is_memory(tmp_path, Path("/proc/self/mounts")):
        disk = 0  # the temporary folder is memory here
    assert told - disk > 15 * MIB


def test_without_procfs_nothing_is_known_and_it_says_so(tmp_path: Path) -> None:
    meter = PeakMeter.start(proc=tmp_path, children=True)
    meter.stop()
    assert meter.baseline_bytes is None
    assert meter.current_bytes() is None
    assert meter.peak_bytes() is None
    assert len(meter.warnings) == 1
    assert str(tmp_path) in meter.warnings[0]


def test_a_refused_reset_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text("Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n")
    (tmp_path / "self" / "clear_refs").mkdir()  # can't be written to, as root too
    meter = PeakMeter.start(proc=tmp_path)
    assert meter.baseline_bytes == MIB
    assert meter.peak_bytes() == 2 * MIB
    assert "clear_refs" in meter.warnings[0]


def test_garbage_in_procfs_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_bytes(b"\xff\x00VmRSS:\nVmHWM: much kB\n")
    meter = PeakMeter.start(proc=tmp_path)
    assert meter.peak_bytes() is None


def tree_without_rollup(proc: Path) -> None:
    """A process with one child under a kernel that has no smaps_rollup yet."""
    for name, children in (("self", "7"), ("7", "")):
        (proc / name / "task" / "1").mkdir(parents=True)
        (proc / name / "task" / "1" / "children").write_text(children)
        (proc / name / "status").write_text("VmRSS:\t  1000 kB\nVmHWM:\t  1000 kB\n")
        (proc / name / "smaps").write_text(
            "00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/x\nRss: 900 kB\nPss:                 300 kB\n"
            "00652000-00655000 rw-p 00000000 08:02 173521 /usr/bin/x\nPss:                 200 kB\nPss_Dirty: 9 kB\n"
        )


def test_a_kernel_without_smaps_rollup_is_summed_from_smaps(tmp_path: Path) -> None:
    tree_without_rollup(tmp_path)
    meter = PeakMeter.start(proc=tmp_path, children=True)
    meter.stop()
    assert meter.current_bytes() == 2 * 500 * 1024
    assert [("before 4.14" in sentence) for sentence in meter.warnings if "smaps" in sentence] == [True]


def test_children_that_can_not_be_measured_are_said(tmp_path: Path) -> None:
    tree_without_rollup(tmp_path)
    (tmp_path / "self" / "smaps").unlink()
    meter = PeakMeter.start(proc=tmp_path, children=True)
    meter.stop()
    assert meter.current_bytes() == 1000 * 1024  # this process alone
    assert [("not measured" in sentence) for sentence in meter.warnings if "smaps" in sentence] == [True]


def set_status(proc: Path, *, mark_kib: int, resident_kib: int) -> None:
    (proc / "self").mkdir(exist_ok=True)
    (proc / "self" / "status").write_text(f"VmHWM:\t  {mark_kib} kB\nVmRSS:\t  {resident_kib} kB\n")


def test_a_missing_rollup_is_no_reason_to_leave_the_mark_alone(tmp_path: Path) -> None:
    tree_without_rollup(tmp_path)
    meter = PeakMeter.start(proc=tmp_path, children=True)
    meter.stop()
    assert meter.warnings
    (tmp_path / "self" / "clear_refs").unlink()
    meter.take_recent_peak_bytes()
    assert (tmp_path / "self" / "clear_refs").read_text() == "5"


def test_a_mark_that_can_not_be_reset_is_recent_only_when_it_grew(tmp_path: Path) -> None:
    set_status(tmp_path, mark_kib=2048, resident_kib=1024)
    (tmp_path / "self" / "clear_refs").mkdir()
    meter = PeakMeter.start(proc=tmp_path)
    assert meter.take_recent_peak_bytes() == MIB  # the mark is from before the start
    set_status(tmp_path, mark_kib=4096, resident_kib=1024)
    assert meter.take_recent_peak_bytes() == 4 * MIB
    assert meter.take_recent_peak_bytes() == MIB
    assert meter.peak_bytes() == 4 * MIB
    assert len(meter.warnings) == 1


def test_recent_peaks_are_told_once_and_kept_for_the_run(tmp_path: Path) -> None:
    set_status(tmp_path, mark_kib=4096, resident_kib=1024)
    meter = PeakMeter.start(proc=tmp_path)
    assert meter.take_recent_peak_bytes() == 4 * MIB
    set_status(tmp_path, mark_kib=1024, resident_kib=1024)  # what the reset does
    assert meter.take_recent_peak_bytes() == MIB
    assert meter.peak_bytes() == 4 * MIB


def test_files_in_memory_that_are_gone_are_no_recent_peak(tmp_path: Path) -> None:
    proc, folder = tmp_path / "proc", tmp_path / "run"
    for place in (proc, folder):
        place.mkdir()
    set_status(proc, mark_kib=1024, resident_kib=1024)
    (proc / "self" / "mounts").write_text(f"tmpfs {folder.resolve()} tmpfs rw 0 0\n")
    (folder / "new").write_bytes(b"x" * MIB)
    meter = PeakMeter(proc=proc, shared_folders=[folder])
    assert meter.take_recent_peak_bytes() >= 2 * MIB
    (folder / "new").unlink()
    assert meter.take_recent_peak_bytes() < 2 * MIB
    assert meter.peak_bytes() >= 2 * MIB


@pytest.mark.parametrize("slow", ["_tree_bytes", "_files_bytes"])
def test_a_slow_look_does_not_bring_back_a_peak_that_was_told(
    slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_status(tmp_path, mark_kib=1, resident_kib=1)
    meter = PeakMeter(proc=tmp_path, children=True)
    looking, look = threading.Event(), threading.Event()
    found = 500 * MIB

    def read() -> int:
        if threading.current_thread() is sampler:
            looking.set()
            assert look.wait(10)
        return found

    sampler = threading.Thread(target=meter._sample)
    monkeypatch.setattr(meter, slow, read)
    meter._sample()
    sampler.start()
    assert looking.wait(10)
    assert meter.take_recent_peak_bytes() >= 500 * MIB
    found = MIB
    look.set()
    sampler.join(10)
    assert meter.take_recent_peak_bytes() < 2 * MIB
    assert meter.peak_bytes() >= 500 * MIB


class Card:
    """An accelerator's memory, as its allocator counts it."""

    def __init__(self, *, unified: bool) -> None:
        self.unified = unified
        self.reserved = self.peak = self.resets = 0

    def hold(self, size: int) -> None:
        self.reserved = size
        self.peak = max(self.peak, size)

    def reserved_bytes(self) -> int:
        return self.reserved

    def peak_bytes(self) -> int:
        return self.peak

    def reset_peak(self) -> None:
        self.peak = self.reserved
        self.resets += 1


def test_unified_device_memory_counts(tmp_path: Path) -> None:
    set_status(tmp_path, mark_kib=1024, resident_kib=1024)
    card = Card(unified=True)
    meter = PeakMeter.start(proc=tmp_path, device=card)
    assert meter.baseline_bytes == MIB  # nobody has used the card yet
    card.hold(8 * MIB)
    card.hold(2 * MIB)
    assert meter.current_bytes() == 3 * MIB
    assert meter.take_recent_peak_bytes() == 9 * MIB
    assert meter.take_recent_peak_bytes() == 3 * MIB  # its mark has not grown since
    card.hold(5 * MIB)
    assert meter.take_recent_peak_bytes() == 6 * MIB
    meter.stop()
    card.hold(99 * MIB)
    assert meter.peak_bytes() == 9 * MIB


def test_device_memory_of_its_own_does_not_count(tmp_path: Path) -> None:
    set_status(tmp_path, mark_kib=1024, resident_kib=1024)
    card = Card(unified=False)
    meter = PeakMeter.start(lambda: card.hold(8 * MIB), proc=tmp_path, device=card)
    card.hold(9 * MIB)
    found = (meter.baseline_bytes, meter.current_bytes(), meter.take_recent_peak_bytes(), meter.peak_bytes())
    assert found == (MIB, MIB, MIB, MIB)


@pytest.mark.parametrize("unified", [True, False])
def test_the_peak_of_a_device_is_that_of_the_run(unified: bool, tmp_path: Path) -> None:
    set_status(tmp_path, mark_kib=1024, resident_kib=1024)
    card = Card(unified=unified)

    def warm_up() -> None:
        card.hold(64 * MIB)  # in passing
        card.hold(2 * MIB)

    meter = PeakMeter.start(warm_up, proc=tmp_path, device=card)
    assert meter.baseline_bytes == (3 if unified else 1) * MIB
    for size in (4, 16, 3):
        card.hold(size * MIB)
        meter.take_recent_peak_bytes()
    meter.stop()
    assert card.peak_bytes() == 16 * MIB
    assert card.resets == 1


@linux
def test_the_meter_itself_is_small() -> None:
    (resident,) = in_fresh_process("""
        from edgetune.measure import PeakMeter
        print(PeakMeter.start().current_bytes())
    """)
    assert resident < 40 * MIB
