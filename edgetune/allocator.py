"""Keep resident memory close to what is in use: settings of glibc's allocator, and code that only a start needed.

glibc keeps freed memory for reuse and raises its own thresholds as a program frees large blocks, so that a training
process holds more than it uses. Large blocks served by `mmap` go back to the kernel when freed, at the price of fresh
zeroed pages: a ViT-S, 98 px, batch 32, every block trained, peaked at 800 MiB above the bare process instead of 945 MiB
and took 1.86 s a step instead of 1.34 s. So it is a lever of the plan (`allocator`), for when memory is short.

With the other one, the lean trainer wants freed memory kept: left alone, glibc hands the top of its heap back whenever
a few temporaries of a block are freed, and the kernel finds and clears the same pages anew (44,646 page faults a step
of that ViT-S, 1.4 times the time; what is kept costs some 8 MiB at the peak).
See mallopt(3).
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

from edgetune.schema import Plan

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MMAP_FROM_BYTES = _TRIM_FROM_BYTES = 256 << 10  # smaller ones stay in a heap, which fragments
_REUSED_BELOW_BYTES, _KEPT_BYTES = 32 << 20, 256 << 20  # the former is the most that glibc takes

_MADV_DONTNEED = 4

_ONEDNN_SHAPES = "32"


def settle_allocators(plan: Plan) -> None:
    """What a plan's run asks of malloc and of the libraries' own memory; before they are loaded."""
    settle_malloc(plan)
    if plan.allocator == "lean" or plan.feature_cache is not None:
        keep_mkl_lean()
    if plan.alast is not None and "bf16" in (plan.precision, plan.frozen_precision):
        keep_onednn_lean()


def settle_malloc(plan: Plan) -> None:
    """Have malloc as a plan has it; also after `keep_malloc_lean`, when memory was short for a while.

    glibc can't be left to itself again: a plan that asks for nothing stays as lean as it was made.
    """
    if plan.allocator == "lean":
        keep_malloc_lean()
    elif plan.trainer == "lean" and plan.engine == "torch" and plan.feature_cache is None:
        # not over cached features: so little is freed in their steps that what is kept would show
        _set_malloc((_M_MMAP_THRESHOLD, _REUSED_BELOW_BYTES), (_M_TRIM_THRESHOLD, _KEPT_BYTES))


def keep_malloc_lean() -> bool:
    """Fix glibc's thresholds for this process; False where the C library is another one."""
    return _set_malloc((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES), (_M_TRIM_THRESHOLD, _TRIM_FROM_BYTES))


def _set_malloc(*settings: tuple[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(option, value) for option, value in settings)  # none alone: one stops glibc's own choice of all


def keep_mkl_lean() -> None:
    """Have MKL return its packing buffers after each product instead of keeping one for every size and thread.

    For runs that hold so little that this shows: 2 MiB of a ViT-Ti's 33, 4 to 10 of a ViT-B's 150. Where every block
    trains it cost 3 to 8 % of the time for 2 % of the memory. Must come before the first product (MKL's developer
    guide, MKL_DISABLE_FAST_MM).
    """
    os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")


def keep_onednn_lean() -> None:
    """Have oneDNN, which multiplies in bf16, remember the code of few shapes instead of a thousand.

    For plans whose steps have ever other numbers of tokens, each of which is a shape of its own: a ViT-Ti at 96 px,
    batch 39, grew by 10 MiB a step, to 106 MiB after four; so it stays at 72. Must come before torch is loaded, whose
    own cache on top of oneDNN's reads the second variable (oneDNN's developer guide, "Primitive Cache").
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, _ONEDNN_SHAPES)


def release_free_memory() -> None:
    """Hand what malloc holds but nobody uses back to the kernel."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass


def release_code(library: str) -> None:
    """Let go of the pages of a library's code; those still needed come back, from the file, when they are next used.

    What a library ran once, to start, otherwise stays resident for good, with the pages around it that the kernel maps
    along with every page that is touched. See madvise(2), MADV_DONTNEED.

    Args:
        library: how the name of its file begins; it is loaded.
    """
    try:
        madvise, found = ctypes.CDLL(None).madvise, code_of(library)
    except (OSError, AttributeError):
        return
    for start, size in found:
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_DONTNEED)


@cache
def code_of(library: str, smaps: Path = Path("/proc/self/smaps")) -> tuple[tuple[int, int], ...]:
    """Address and size of the mappings that hold a library's code just as its file has it (proc(5), smaps).

    Raises:
        OSError: there is no such file.
    """
    found: list[tuple[int, int]] = []
    place: tuple[int, int] | None = None
    for line in smaps.read_text().splitlines():
        key, *values = line.split(maxsplit=5)
        if not key.endswith(":"):  # the first line of a mapping: address, permissions, offset, device, inode, path
            start, end = (int(part, 16) for part in key.split("-"))
            executable = len(values) == 5 and values[0] == "r-xp" and Path(values[4]).name.startswith(library)
            place = (start, end - start) if executable else None
        elif place and key == "Anonymous:" and values[0] == "0":
            found.append(place)  # else it was changed in memory, which the file can't bring back
    return tuple(found)
