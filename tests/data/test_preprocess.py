from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgetune.data.preprocess import CROP_SCALE, View, centre_view, normalise, random_view, read, render

from .conftest import picture


@pytest.mark.parametrize(
    "size", [(64, 64), (100, 64), (64, 101), (333, 500), (37, 23), (8, 8), (1000, 50), (97, 98), (199, 64)]
)
@pytest.mark.parametrize("image_size", [32, 98])
def test_evaluation_is_resize_and_centre_crop(size, image_size):
    transforms = pytest.importorskip("torchvision.transforms")
    image = picture(1, *size)
    expected = transforms.Compose(
        [
            transforms.Resize(image_size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(image_size),
        ]
    )(image)
    shown = render(image, centre_view(size[0], size[1], image_size), image_size)
    off = abs(shown.astype(int) - np.asarray(expected).astype(int))
    assert off.max() <= 2, "Pillow rounds between its two passes, and picks their order by the box"
    assert off.mean() < 0.3


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600))
def test_centre_view_lies_inside(width, height, image_size):
    left, upper, right, lower = centre_view(width, height, image_size).box
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 99))
def test_random_view_lies_inside(width, height, seed):
    left, upper, right, lower = random_view(width, height, random.Random(seed)).box
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height


def test_random_views_vary_in_the_ranges_promised():
    views = [random_view(240, 200, random.Random(seed)) for seed in range(400)]
    areas = [(right - left) * (lower - upper) / 48_000 for (left, upper, right, lower), _ in views]
    ratios = [(right - left) / (lower - upper) for (left, upper, right, lower), _ in views]
    assert CROP_SCALE[0] - 0.01 < min(areas) < 0.4
    assert 0.9 < max(areas) <= 1
    assert 0.74 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.35
    assert 150 < sum(view.mirrored for view in views) < 250
    assert not any(random_view(300, 200, random.Random(seed), flip=False).mirrored for seed in range(50))


def test_flip_leaves_the_crop_alone():
    for seed in range(10):
        assert random_view(50, 40, random.Random(seed)).box == random_view(50, 40, random.Random(seed), flip=False).box


def test_mirrored_view():
    image = picture(0)
    plain, mirrored = (render(image, View((2, 3, 12, 13), flag), 10) for flag in (False, True))
    assert np.array_equal(plain[:, ::-1], mirrored)
    assert np.array_equal(plain, np.asarray(image)[3:13, 2:12])


def test_a_very_long_image_costs_a_square(tmp_path):
    Image.new("RGB", (20_000, 4), "red").save(tmp_path / "line.png")
    for rng in (None, random.Random(0)):
        pixels = read(str(tmp_path / "line.png"), 98, rng)
        assert pixels.shape == (98, 98, 3)
        assert (pixels == (255, 0, 0)).all()


def test_normalise():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    images = normalise(pixels, mean, std)
    assert images.dtype == np.float32
    assert images.flags.c_contiguous
    assert np.abs(images - expected).max() < 1e-6
