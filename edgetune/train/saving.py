"""Writing a run's files when memory is short: a save must not be what loses the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgetune.allocator import release_free_memory
from edgetune.errors import StorageError
from edgetune.train.engine import Engine
from edgetune.train.scarcity import OutOfMemoryError, memory_errors


def written(engine: Engine, path: Path, write: Callable[[Path], int]) -> int:
    """Bytes that `write` put into the file; where memory runs out, it is tried again without what is not needed for it.

    Raises:
        StorageError: there is not even memory for that; what was written before is as it was.
    """
    try:
        with memory_errors():
            return write(path)
    except OutOfMemoryError:
        pass  # and lets go of what the attempt held
    engine.rest()
    release_free_memory()
    try:
        with memory_errors():
            return write(path)
    except OutOfMemoryError as error:
        raise StorageError(
            f"{path} can't be written, memory ran out ({error}): end other programs; a run that has a state goes on"
            " with --resume."
        ) from error
