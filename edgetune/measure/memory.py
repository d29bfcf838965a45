"""Peak memory as the contract defines it: the kernel's high-water mark above a baseline, over the whole process tree.

*Baseline* is resident memory after imports, thread pools and one dummy matrix product, before any weight is read. The
high-water mark (VmHWM) is then reset by writing 5 to `/proc/self/clear_refs` (Linux,
Documentation/filesystems/proc.rst), so that what imports needed in passing does not count. `ru_maxrss` is never used:
it is inherited over exec. With child processes the peak is the larger of that mark and the largest sum of PSS over the
tree, sampled at 10 Hz or faster. Where an accelerator has its memory from the machine's, what its allocator holds is
added; who starts the meter knows the library that can tell, this module knows none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

_RESET_PEAK = "5"
_SAMPLE_EVERY_S = 0.05  # 20 Hz: a late wake-up still leaves 10
_KIB = 1024
_TMPFS = frozenset({"tmpfs", "ramfs", "hugetlbfs"})


class DeviceMemory(Protocol):
    """What an accelerator's allocator holds for this process."""

    unified: bool  # the accelerator's memory is the machine's own, and counts as the process's

    def reserved_bytes(self) -> int:
        """What it holds now; 0 while nobody has used the accelerator."""

    def peak_bytes(self) -> int:
        """The most it held since `reset_peak`."""

    def reset_peak(self) -> None:
        """Forget what it held before."""


class PeakMeter:
    """Watches one process, its children where told, and the memory-backed files it writes where told.

    Use `start`; a meter that can't read something returns None for it and says so in `warnings`.

    Args:
        proc: where procfs is mounted.
        children: sample the process tree too.
        shared_folders: folders the run writes to; whatever of them lies on tmpfs is memory, and is added.
        device: an accelerator; unified memory of it is added.
    """

    def __init__(
        self,
        *,
        proc: Path = Path("/proc"),
        children: bool = False,
        shared_folders: Sequence[Path] = (),
        device: DeviceMemory | None = None,
    ) -> None:
        self._self = proc / "self"
        self._proc = proc
        self._children = children
        self._folders = [folder for folder in shared_folders if _is_memory(folder, self._self / "mounts")]
        self._device = device if device is not None and device.unified else None
        self._lock = threading.Lock()  # of the next four, which the sampler writes too
        self._most_of_tree_bytes = self._recent_tree_bytes = 0
        self._most_of_files_bytes = self._recent_files_bytes = 0
        self._frozen_peak_bytes: int | None = None
        self._mark_resets = True  # until the kernel refuses
        self._earlier_mark_bytes = 0  # the highest before a reset
        self._seen_mark_bytes = self._seen_device_peak_bytes = 0  # as last read: what hasn't grown since isn't recent
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None
        self.baseline_bytes: int | None = None
        self.warnings: list[str] = []

    @classmethod
    def start(
        cls,
        warm_up: Callable[[], object] | None = None,
        *,
        proc: Path = Path("/proc"),
        children: bool = False,
        shared_folders: Sequence[Path] = (),
        device: DeviceMemory | None = None,
    ) -> PeakMeter:
        """Run `warm_up` (imports, thread pools, a dummy matrix product), take the baseline, reset the marks, watch."""
        if warm_up is not None:
            warm_up()
        meter = cls(proc=proc, children=children, shared_folders=shared_folders, device=device)
        meter.baseline_bytes = meter.current_bytes()
        if meter.baseline_bytes is None:
            meter.warnings.append(f"{meter._self / 'status'} can't be read, so memory is not measured on this system.")
        else:
            meter._reset_mark()
            meter._seen_mark_bytes = meter._mark() or 0
        if device is not None:  # once: its peak is the run's, whatever is asked for meanwhile
            device.reset_peak()
        if children and meter.baseline_bytes is not None and not (meter._self / "smaps_rollup").exists():
            meter.warnings.append(_no_rollup(meter._self))
        if children or meter._folders:
            meter._sampler = threading.Thread(target=meter._watch, name="edgetune-memory", daemon=True)
            meter._sampler.start()
        return meter

    @property
    def folders_in_memory(self) -> tuple[Path, ...]:
        """Those of the shared folders whose files are memory."""
        return tuple(self._folders)

    def current_bytes(self) -> int | None:
        """Resident memory now: VmRSS of this process, or the sum of PSS over the tree; files; unified device memory."""
        own = _status_bytes(self._self / "status", "VmRSS")
        if own is None:
            return None
        tree = self._tree_bytes() if self._children else None
        device = 0 if self._device is None else self._device.reserved_bytes()
        return (own if tree is None else tree) + self._files_bytes() + device

    def peak_bytes(self) -> int | None:
        """The measured peak since `start`; after `stop` it stays what it was then.

        Memory-backed files and device memory are added at their own largest, since the mark does not say when it was
        reached.
        """
        if self._frozen_peak_bytes is not None:
            return self._frozen_peak_bytes
        mark = self._mark()
        if mark is None:
            return None
        self._sample()
        device = 0 if self._device is None else self._device.peak_bytes()
        return max(mark, self._most_of_tree_bytes, self._earlier_mark_bytes) + self._most_of_files_bytes + device

    def take_recent_peak_bytes(self) -> int | None:
        """The peak since this was last called, or since `start`; the peak of the whole run is kept aside.

        A mark that can't be reset tells of the time since only when it has grown; otherwise it is what is resident now.
        """
        self._sample()
        mark = self._mark()
        if mark is None:
            return None
        recent = mark
        if not self._mark_resets and mark <= self._seen_mark_bytes:
            resident = _status_bytes(self._self / "status", "VmRSS")
            recent = mark if resident is None else resident
        self._seen_mark_bytes = mark
        self._earlier_mark_bytes = max(self._earlier_mark_bytes, mark)
        with self._lock:
            recent = max(recent, self._recent_tree_bytes) + self._recent_files_bytes
            self._recent_tree_bytes = self._recent_files_bytes = 0
        if self._mark_resets:
            self._reset_mark()
        return recent + self._recent_device_bytes()

    def stop(self) -> None:
        """Stop watching; `peak_bytes` keeps its last answer."""
        self._stop.set()
        if self._sampler is not None:
            self._sampler.join()
            self._sampler = None
        self._frozen_peak_bytes = self.peak_bytes()

    def _mark(self) -> int | None:
        return _status_bytes(self._self / "status", "VmHWM")

    def _reset_mark(self) -> None:
        try:
            (self._self / "clear_refs").write_text(_RESET_PEAK)
        except OSError as error:
            self._mark_resets = False
            self.warnings.append(
                f"{self._self / 'clear_refs'} refused to reset the memory high-water mark ({error.strerror}): the peak"
                " may include what starting the process needed."
            )

    def _recent_device_bytes(self) -> int:
        """Of unified memory; the device's peak is never reset meanwhile, and so read as a mark that can't be."""
        if self._device is None:
            return 0
        peak, seen = self._device.peak_bytes(), self._seen_device_peak_bytes
        self._seen_device_peak_bytes = peak
        return peak if peak > seen else self._device.reserved_bytes()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        """Look at processes and files once; either thread does."""
        # Looking takes a while, in which the other thread may zero what is recent: so look first, compare after.
        tree = (self._tree_bytes() or 0) if self._children else 0
        files = self._files_bytes()
        with self._lock:
            self._most_of_tree_bytes = max(self._most_of_tree_bytes, tree)
            self._recent_tree_bytes = max(self._recent_tree_bytes, tree)
            self._most_of_files_bytes = max(self._most_of_files_bytes, files)
            self._recent_files_bytes = max(self._recent_files_bytes, files)

    def _tree_bytes(self) -> int | None:
        """Sum of PSS over this process and its descendants; None where there are none, or PSS can't be read."""
        descendants = list(_descendants(self._proc, "self"))
        if not descendants:
            return None
        own = _pss_bytes(self._self)
        if own is None:
            return None
        # a child that has just ended has no PSS any more
        return own + sum(_pss_bytes(self._proc / process) or 0 for process in descendants)

    def _files_bytes(self) -> int:
        return sum(_folder_bytes(folder) for folder in self._folders)


def _status_bytes(path: Path, key: str) -> int | None:
    """A `Key:   123 kB` line of a procfs file, in bytes; None where it can't be had."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == key:
            digits = value.split()
            return int(digits[0]) * _KIB if digits and digits[0].isdigit() else None
    return None


def _pss_bytes(process: Path) -> int | None:
    """A process's proportional share of memory: one line on Linux 4.14 and later, else a line for every mapping."""
    rollup = _status_bytes(process / "smaps_rollup", "Pss")
    if rollup is not None:
        return rollup
    try:
        lines = (process / "smaps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    shares = [line.split()[1] for line in lines if line.startswith("Pss:") and len(line.split()) > 1]
    return sum(int(share) for share in shares if share.isdigit()) * _KIB if shares else None


def _no_rollup(process: Path) -> str:
    if _pss_bytes(process) is not None:
        return f"{process / 'smaps_rollup'} is missing (Linux before 4.14): memory is summed from smaps, more slowly."
    return (
        f"{process / 'smaps_rollup'} and smaps can't be read: the memory of other processes of the run (loader workers)"
        " is not measured."
    )


def _descendants(proc: Path, process: str) -> Iterator[str]:
    """Process ids below `process`, children before grandchildren."""
    try:
        tasks = list((proc / process / "task").iterdir())
    except OSError:
        return
    for task in tasks:
        try:
            children = (task / "children").read_text().split()
        except OSError:  # the thread has ended, or the kernel lacks CONFIG_PROC_CHILDREN
            continue
        for child in children:
            yield child
            yield from _descendants(proc, child)


def _is_memory(folder: Path, mounts: Path) -> bool:
    """Whether `folder` lies on a file system that is memory."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
        place = folder.resolve()
    except OSError:
        return False
    kind, deepest = "", -1
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        at = Path(fields[1].replace("\\040", " "))
        if place.is_relative_to(at) and len(at.parts) >= deepest:  # a later mount hides an earlier one
            kind, deepest = fields[2], len(at.parts)
    return kind in _TMPFS


def _folder_bytes(folder: Path) -> int:
    """Blocks held by the files below a folder; a file that vanishes half-way counts nothing."""
    total = 0
    try:
        for path in folder.rglob("*"):
            try:
                status = path.lstat()
            except OSError:
                continue
            total += status.st_blocks * 512
    except OSError:
        pass
    return total
