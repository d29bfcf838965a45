"""A tiny, learnable data set and a plan for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune.plan import make_plan
from edgetune.schema import Plan

COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noisy colour patches, 8 training and 4 validation images each."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for name, colour in COLOURS.items():
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                noise = rng.normal(0, 30, (24, 24, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture
def plan_for(photos: Path) -> Any:
    """A function that plans a tiny run on the photos; keyword arguments are `make_plan`'s."""

    def make(**arguments: Any) -> Plan:
        settings: dict[str, Any] = {"model": "vit_nano_patch8_64", "image_size": 32, "batch_size": 6, "epochs": 2}
        return make_plan(photos, **(settings | {"threads": 1, "workers": 0} | arguments))

    return make
