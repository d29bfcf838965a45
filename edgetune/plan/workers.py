"""How many processes decode images beside the one that trains, and what they take."""

from __future__ import annotations

# Memory of one by its proportional share: the interpreter, numpy, Pillow, a decoded photo; see docs/planner.md.
WORKER_BYTES = 48 << 20


def workers_that_fit(memory_left_bytes: int | None, cores: int, image_bytes: int) -> int:
    """Decoding processes worth having beside a training process.

    None on one or two cores, where they would only take turns with the training threads; else a third of the cores,
    four at most, as far as a quarter of the memory left holds them. (Where training itself keeps every core busy,
    as on a CPU, they gain little; where a GPU trains, they are what keeps it fed.)

    Args:
        memory_left_bytes: what the plan leaves free; None is unknown, and gives none.
        cores: that this process may use.
        image_bytes: of the decoded batch a worker holds, 3 · S² bytes an image.
    """
    if memory_left_bytes is None or cores <= 2:
        return 0
    return max(0, min(4, cores // 3, memory_left_bytes // 4 // (WORKER_BYTES + 2 * image_bytes)))
