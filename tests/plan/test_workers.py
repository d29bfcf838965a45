"""Workers are planned where there is room for them, and nowhere else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgetune.plan.workers import workers_that_fit


def test_how_many_there_are():
    assert workers_that_fit(None, 8, 10_000) == 0
    assert workers_that_fit(8 << 30, 1, 10_000) == 0
    assert workers_that_fit(8 << 30, 2, 10_000) == 0
    assert workers_that_fit(8 << 30, 4, 10_000) == 1
    assert workers_that_fit(8 << 30, 64, 10_000) == 4
    assert workers_that_fit(100 << 20, 8, 10_000) == 0, "no room"
    assert workers_that_fit(420 << 20, 12, 10_000) == 2
    assert workers_that_fit(-5, 8, 10_000) == 0


@given(st.integers(0, 1 << 36), st.integers(1, 128), st.integers(1, 1 << 28))
def test_they_fit_into_a_quarter_of_the_memory(memory, cores, image_bytes):
    count = workers_that_fit(memory, cores, image_bytes)
    assert 0 <= count < cores
    assert count * (image_bytes + (40 << 20)) <= memory
