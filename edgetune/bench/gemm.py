"""The machine's rate of plain matrix products, as a process of its own: what training FLOPs are held against.

    python -m edgetune.bench.gemm THREADS

Prints the FLOPs per second of the best of several fp32 products of square matrices.
"""

from __future__ import annotations

import sys
import time

SIDE = 1024
_SECONDS, _LEAST = 0.8, 4


def main(threads: int) -> None:
    """Multiply for a while; a fused multiply-add counts two."""
    import torch

    torch.set_num_threads(threads)
    left, right = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)
    left @ right
    best_s, done = float("inf"), 0
    deadline = time.monotonic() + _SECONDS
    while done < _LEAST or time.monotonic() < deadline:
        began = time.perf_counter()
        left @ right
        best_s, done = min(best_s, time.perf_counter() - began), done + 1
    print(2 * SIDE**3 / best_s)


if __name__ == "__main__":
    main(int(sys.argv[1]))
