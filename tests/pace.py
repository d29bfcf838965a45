"""Limits on processor time that hold on any machine: what the test's work took is held against a yardstick of this one."""

from __future__ import annotations

import time

# What `_work` took of the machine that the limits were written for, two quiet x86 cores of 2025.
_REFERENCE_S = 0.020


def _work() -> None:
    """Attribute look-ups, small objects and text: what reading a board and planning are made of."""
    found = {}
    for number in range(40_000):
        name = f"block {number % 97}"
        found[name] = found.get(name, 0.0) + float(len(name.split()))


def slowness() -> float:
    """How many times slower this machine is at the moment (emulated, throttled, shared); never below one."""
    spent = []
    for _ in range(5):  # another process may come between: the best counts
        began = time.process_time()
        _work()
        spent.append(time.process_time() - began)
    return max(1.0, min(spent) / _REFERENCE_S)
