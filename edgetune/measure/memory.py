"""Peak memory as the contract defines it: the kernel's high-water mark above a baseline, over the whole process tree.

*Baseline* is resident memory after imports, thread pools and one dummy matrix product, before any weight is read. The
high-water mark (VmHWM) is then reset by writing 5 to `/proc/self/clear_refs` (Linux,
Documentation/filesystems/proc.rst), so that what imports needed in passing does not count. `ru_maxrss` is never used:
it is inherited over exec. With child processes the peak is the larger of that mark and the largest sum of PSS over the
tree, sampled at 10 Hz or faster.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_RESET_PEAK = "5"
_SAMPLE_EVERY_S = 0.05  # 20 Hz: a late wake-up still leaves 10
_KIB = 1024
_TMPFS = frozenset({"tmpfs", "ramfs", "hugetlbfs"})


class PeakMeter:
    """Watches one process, its children where told, and the memory-backed files it writes where told.

    Use `start`; a meter that can't read something returns None for it and says so in `warnings`.

    Args:
        proc: where procfs is mounted.
        children: sample the process tree too.
        shared_folders: folders the run writes to; whatever of them lies on tmpfs is memory, and is added.
    """

    def __init__(
        self, *, proc: Path = Path("/proc"), children: bool = False, shared_folders: Sequence[Path] = ()
    ) -> None:
        self._self = proc / "self"
        self._proc = proc
        self._children = children
        self._folders = [folder for folder in shared_folders if _is_memory(folder, self._self / "mounts")]
        self._most_of_tree_bytes = 0
        self._most_of_files_bytes = 0
        self._frozen_peak_bytes: int | None = None
        self._earlier_peak_bytes = 0  # of the stretches that `take_recent_peak_bytes` closed
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
    ) -> PeakMeter:
        """Run `warm_up` (imports, thread pools, a dummy matrix product), take the baseline, reset the mark, watch."""
        if warm_up is not None:
            warm_up()
        meter = cls(proc=proc, children=children, shared_folders=shared_folders)
        meter.baseline_bytes = meter.current_bytes()
        if meter.baseline_bytes is None:
            meter.warnings.append(f"{meter._self / 'status'} can't be read, so memory is not measured on this system.")
        else:
            meter._reset()
        if children and meter.baseline_bytes is not None and not (meter._self / "smaps_rollup").exists():
            meter.warnings.append(_no_rollup(meter._self))
        if children or meter._folders:
            meter._sampler = threading.Thread(target=meter._watch, name="edgetune-memory", daemon=True)
            meter._sampler.start()
        return meter

    def current_bytes(self) -> int | None:
        """Resident memory now: VmRSS of this process, with children the sum of PSS over the tree, and the files."""
        own = _status_bytes(self._self / "status", "VmRSS")
        if own is None:
            return None
        tree = self._tree_bytes() if self._children else None
        return (own if tree is None else tree) + self._files_bytes()

    def peak_bytes(self) -> int | None:
        """The measured peak since `start`; after `stop` it stays what it was then.

        Memory-backed files are added at their own largest, since the mark does not say when it was reached.
        """
        if self._frozen_peak_bytes is not None:
            return self._frozen_peak_bytes
        mark = _status_bytes(self._self / "status", "VmHWM")
        if mark is None:
            return None
        self._sample()
        return max(mark, self._most_of_tree_bytes, self._earlier_peak_bytes) + self._most_of_files_bytes

    def take_recent_peak_bytes(self) -> int | None:
        """The peak since this was last called, or since `start`; the peak of the whole run is kept aside."""
        mark = _status_bytes(self._self / "status", "VmHWM")
        if mark is None:
            return None
        self._sample()
        recent = max(mark, self._most_of_tree_bytes)
        self._earlier_peak_bytes = max(self._earlier_peak_bytes, recent)
        self._most_of_tree_bytes = 0
        if not self.warnings:  # where the mark can't be reset it only grows
            self._reset()
        return recent + self._most_of_files_bytes

    def stop(self) -> None:
        """Stop watching; `peak_bytes` keeps its last answer."""
        self._stop.set()
        if self._sampler is not None:
            self._sampler.join()
            self._sampler = None
        self._frozen_peak_bytes = self.peak_bytes()

    def _reset(self) -> None:
        try:
            (self._self / "clear_refs").write_text(_RESET_PEAK)
        except OSError as error:
            self.warnings.append(
                f"{self._self / 'clear_refs'} refused to reset the memory high-water mark ({error.strerror}): the peak"
                " may include what starting the process needed."
            )
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        if self._children:
            self._most_of_tree_bytes = max(self._most_of_tree_bytes, self._tree_bytes() or 0)
        self._most_of_files_bytes = max(self._most_of_files_bytes, self._files_bytes())

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
