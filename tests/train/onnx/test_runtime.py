"""Running graphs on the caller's own memory: what a graph reads and writes is what it was given this time."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgetune.errors import InputError
from edgetune.train.halves import part_behind
from edgetune.train.onnx.drawing import Drawing
from edgetune.train.onnx.passing import count
from edgetune.train.onnx.runtime import Runtime


@pytest.fixture
def runtime():
    drawing = Drawing()
    drawing.input("x", ["n"])
    drawing.result("y", drawing.add("Add", ["x", drawing.number("one", 1)], "sum"), ["n"])
    return Runtime(lambda name: drawing.model(name).SerializeToString(), threads=1)


def added(runtime, x, y=None):
    y = np.zeros_like(x) if y is None else y
    runtime.run("add", {"x": x}, {"y": y})
    return y.tolist()


def test_another_array_is_bound_anew_and_the_same_one_is_read_anew(runtime):
    x, y = np.array([1, 2], np.float32), np.zeros(2, np.float32)
    assert added(runtime, x, y) == [2, 3]
    x[:] = 5  # the same memory: nothing is bound, and yet its new values count
    assert added(runtime, x, y) == [6, 6]
    assert added(runtime, np.array([7, 8, 9], np.float32)) == [8, 9, 10]
    assert added(runtime, x) == [6, 6]
    assert y.tolist() == [6, 6]


def test_an_array_in_the_place_of_a_dead_one_is_another(runtime):
    """Python gives a new object a dead one's address, and malloc its memory to one of another size."""
    for size in (4, 3, 5, 4, 2) * 8:
        x = np.full(size, size, np.float32)
        assert added(runtime, x) == [size + 1] * size
        del x


def test_memory_of_an_array_that_its_owner_let_go_is_free(runtime):
    x = np.ones(3, np.float32)
    added(runtime, x)
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is None


def test_an_array_with_gaps_is_refused(runtime):
    with pytest.raises(ValueError, match="x is not contiguous"):
        added(runtime, np.ones(8, np.float32)[::2], np.zeros(4, np.float32))


def test_numbers_are_the_same_arrays_each_time_and_nobody_writes_to_them():
    assert count(197) is count(197)
    with pytest.raises(ValueError, match="read-only"):
        count(197)[0] = 1


def test_images_with_one_token_left_pass_an_mlp_together():
    assert part_behind(1, 197, 1) == 197
    assert part_behind(3, 65, 65) == 3
    assert part_behind(2, 99, 50) == 3


def test_a_damaged_graph_is_no_defect():
    with pytest.raises(InputError, match=r"the training graph mlp can't be read by onnxruntime .*; delete"):
        Runtime(lambda name: b"damaged", threads=1).needs("mlp")


def test_a_runtime_that_is_too_old_is_refused(monkeypatch):
    monkeypatch.setattr("onnxruntime.__version__", "1.18.1")
    with pytest.raises(InputError, match=r"needs onnxruntime 1\.19 or newer, this is 1\.18\.1"):
        Runtime(lambda name: b"", threads=1)
