"""A tiny, learnable data set, a plan for it, and a loop over it with a scripted engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgetune.plan import make_plan
from edgetune.schema import Plan
from tests.train.stage import Stage

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


@pytest.fixture
def stage(plan_for: Any, tmp_path: Path) -> Callable[..., Stage]:
    def make(
        power_w: float | None = None,
        patience: int | None = None,
        evaluate_every: int = 1,
        evaluate_steps: int | None = None,
        epochs: int = 5,
        expected_epochs: int | None = None,
        **caps: float,
    ) -> Stage:
        plan = plan_for(epochs=epochs, patience=patience, evaluate_every=evaluate_every, evaluate_steps=evaluate_steps)
        if expected_epochs is not None:  # fewer than were wanted, as for a cap on time or energy
            steps = expected_epochs * plan.steps_per_epoch
            plan = msgspec.structs.replace(plan, epochs=expected_epochs, total_steps=steps)
        free = {"memory_bytes": None, "energy_j": None, "time_s": None}
        plan = msgspec.structs.replace(plan, caps=msgspec.structs.replace(plan.caps, **(free | caps)))
        return Stage(plan, tmp_path / "run", power_w)

    return make
