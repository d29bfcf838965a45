"""What an evaluation will take, from one batch of it: a cap has to leave room for one before there ever was one."""

from __future__ import annotations

from collections.abc import Callable

from edgetune.train.engine import Engine, Source
from edgetune.train.scarcity import OutOfMemoryError, memory_errors


def evaluated_image_s(engine: Engine, val: Source, micro_batch_size: int, clock: Callable[[], float]) -> float | None:
    """Seconds that reading and evaluating a validation image takes; None where memory ran out or there is no image.

    The first pass brings code into memory, as no later one does, and is not counted.
    """
    try:
        with memory_errors():
            began = clock()
            batch = next(val.epoch(0), None)
            read_s = clock() - began
            if batch is None:
                return None
            engine.evaluate([batch], micro_batch_size, lambda: False)
            began = clock()
            engine.evaluate([batch], micro_batch_size, lambda: False)
            return (read_s + clock() - began) / len(batch.labels)
    except OutOfMemoryError:
        return None
