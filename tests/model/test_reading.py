"""Reading and drawing weights without torch gives what torch gives."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edgetune.model.arrayfile import ArrayStore, ArrayWriter, write_arrays
from edgetune.model.draws import Draws, lora_factor
from edgetune.model.lora import draw_factor
from edgetune.model.reading import resample
from edgetune.model.store import WeightsWriter


@pytest.mark.parametrize("seed", [0, 7, 12345, 2**32 - 1, 2**40 + 3])
def test_the_same_numbers_as_torchs_generator(seed):
    theirs, ours = torch.Generator().manual_seed(seed), Draws(seed)
    for shape in ((3, 64), (10, 192), (7, 5), (17,), (1000, 16)):
        expected = torch.zeros(shape).normal_(std=0.02, generator=theirs).numpy()
        np.testing.assert_allclose(ours.normal(shape, 0.02), expected, atol=2e-8)
    np.testing.assert_allclose(lora_factor(8, 192, ours), draw_factor(8, 192, theirs).numpy(), atol=2e-8)


def test_few_normal_numbers_are_refused_rather_than_others():
    with pytest.raises(ValueError, match="fewer than 16"):
        Draws(0).normal((3, 5), 1.0)


@pytest.mark.parametrize(("before", "after"), [(14, 16), (37, 7), (7, 8), (14, 6), (8, 24), (5, 5)])
def test_positions_are_resampled_as_torch_does(before, after):
    positions = np.random.default_rng(0).standard_normal((1, before**2, 12), np.float32)
    square = torch.from_numpy(positions).reshape(1, before, before, -1).permute(0, 3, 1, 2)
    moved = F.interpolate(square, size=(after, after), mode="bicubic", antialias=True)
    expected = moved.permute(0, 2, 3, 1).reshape(1, after**2, -1).numpy()
    np.testing.assert_allclose(resample(positions, after), expected, atol=5e-6)


def test_every_type_is_read_as_floats(tmp_path):
    values = torch.randn(6, 5)
    integers = torch.arange(30, dtype=torch.int8).view(6, 5)
    entries = {"a": ("BF16", (6, 5)), "b": ("F16", (6, 5)), "c": ("I8", (6, 5))}
    with WeightsWriter(tmp_path / "x", entries, {}) as writer:
        for name, value in {"a": values, "b": values, "c": integers}.items():
            writer.write(name, value)
    store = ArrayStore(tmp_path / "x")
    assert set(store.names) == {"a", "b", "c"}
    np.testing.assert_array_equal(store.read_array("a"), values.bfloat16().float().numpy())
    np.testing.assert_array_equal(store.read_array("b"), values.half().float().numpy())
    np.testing.assert_array_equal(store.read_array("c"), integers.numpy())
    np.testing.assert_array_equal(store.read_array("c", np.empty((6, 5), np.float32)), integers.float().numpy())


def test_what_numpy_writes_torch_reads(tmp_path):
    from safetensors.torch import load_file

    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([3, 4])}
    write_arrays(tmp_path / "x", arrays, {"kind": "test"})
    found = load_file(tmp_path / "x")
    assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in arrays.items()}


def test_bfloat16_is_not_for_numpy_to_write(tmp_path):
    with (
        pytest.raises(ValueError, match="announced was BF16"),
        ArrayWriter(tmp_path / "x", {"a": ("BF16", (1,))}, {}) as writer,
    ):
        writer.write_array("a", np.zeros(1, np.float32))
    assert not (tmp_path / "x").exists()


def test_nothing_here_imports_torch():
    code = "import sys, edgetune.model.reading, edgetune.model.draws; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
