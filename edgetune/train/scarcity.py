"""Memory that ran out, in whatever words: what it looks like, and the one exception that it becomes. Knows no torch.

    MemoryError, numpy's too        the interpreter, arrays, Pillow
    OSError, errno 12               mapping a file, starting a process
    Failed to allocate memory       onnxruntime, in exceptions of its own
    DefaultCPUAllocator …           torch's allocator on the CPU; std::bad_alloc where the C++ library says it
    could not create a primitive    oneDNN, whose kernels and scratch memory are allocated late
    CUDA out of memory              torch.OutOfMemoryError, and any `CUDA error: out of memory` of a later call
    CUBLAS, CUSOLVER, CUDNN         their own ALLOC_FAILED; cuDNN that finds no algorithm has no workspace for any
    NvMapMem…                       Tegra's allocator, where it is heard at all: the number after "Tagged:" varies
    NVML_SUCCESS == r               how torch fails on Tegra while it writes the message of an out-of-memory error
                                    (pytorch issues 112377 and 185240)

What the kernel kills with SIGKILL can't be caught; a decoding process's work is then done here, and a run's own last
state is there for `--resume`.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "unable to allocate",
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
    "could not create a primitive",
    "could not create a memory",
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "cusparse_status_insufficient_resources",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_host_allocation_failed",
    "unable to find a valid cudnn algorithm",
    "unable to find an engine to execute this computation",
    "nvmapmem",
    "nvml_success == r",
)


class OutOfMemoryError(Exception):
    """The machine has no memory for this step, which may be repeated in smaller parts.

    The step has changed nothing; or, where weights are updated on the way back, it changes none twice when repeated.
    """


def means_no_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    ours = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")
    return ours and any(words in text for words in _WORDS)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Whatever says that memory has run out becomes an `OutOfMemoryError`.

    Raises:
        OutOfMemoryError: see the module.
    """
    try:
        yield
    except Exception as error:  # onnxruntime has exceptions of its own
        if not means_no_memory(error):
            raise
        _let_go()
        lines = str(error).splitlines()
        raise OutOfMemoryError(lines[0] if lines else type(error).__name__) from error


def _let_go() -> None:
    """Have an accelerator's allocator give back what it keeps without using it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except RuntimeError:  # it may itself be what ran out
            pass
