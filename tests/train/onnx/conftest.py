"""Small models of every architecture, each trained side by side by the ONNX engine and by the lean one in torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgetune.data.loader import Batch
from edgetune.model.spec import ViTSpec
from edgetune.model.weights import save_weights
from edgetune.schema import Plan
from edgetune.train.lean.engine import LeanEngine
from edgetune.train.onnx.cache import build
from edgetune.train.onnx.engine import OnnxEngine
from tests.train.lean.conftest import SPECS, make_batch, plan_of, random_model

__all__ = ["SPECS", "make_batch", "plan_of"]  # the first fixture is used by name


class Pair(NamedTuple):
    """The same plan and weights in both engines."""

    onnx: OnnxEngine
    torch: LeanEngine
    plan: Plan
    base: Path

    def weights(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What trains, as both have it now: ONNX first."""
        theirs = {name: values.numpy().copy() for name, values in self.torch._trained_weights().items()}
        return {name: values.copy() for name, values in self.onnx._trained_weights().items()}, theirs

    def step(self, batch: Batch, rate: float, micro: int) -> tuple[Any, Any]:
        """One step of each."""
        return self.onnx.train_step(batch, rate, micro), self.torch.train_step(batch, rate, micro)


@pytest.fixture
def pair(plan_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Pair]:
    """A function that builds both engines: `(spec name or spec, method, *levers, …)` as the lean tests' `plan_of`."""

    def make(spec: str | ViTSpec, method: str = "full", *levers: str, **settings: Any) -> Pair:
        spec = SPECS[spec] if isinstance(spec, str) else spec
        for module in ("lean.engine", "onnx.base"):
            monkeypatch.setattr(f"edgetune.train.{module}.find_spec", lambda name: spec)
        plan, _ = plan_of(spec, method, *levers, **settings)
        base = tmp_path / "base"
        save_weights(base, random_model(spec), {})
        load = build(spec, plan.optimizer, plan.lora)
        return Pair(
            OnnxEngine(msgspec.structs.replace(plan, engine="onnx"), base, load), LeanEngine(plan, base), plan, base
        )

    return make


def worst(ours: dict[str, Any], theirs: dict[str, Any], before: dict[str, Any]) -> tuple[float, str]:
    """The largest relative difference of what a parameter moved by, and its name."""
    total = np.sqrt(sum(np.linalg.norm(theirs[name] - before[name]) ** 2 for name in theirs))
    errors = {}
    for name in theirs:
        size = np.linalg.norm(theirs[name] - before[name])
        errors[name] = float(np.linalg.norm(ours[name] - theirs[name]) / (size if size > 1e-6 * total else total))
    name = max(errors, key=lambda name: errors[name])
    return errors[name], name


@pytest.fixture
def photos_folder(tmp_path: Path) -> Path:
    """Sixteen images to train on and eight to validate with, of two classes that differ in colour."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, number in (("train", 8), ("val", 4)):
        for label, colour in enumerate(("red", "blue")):
            folder = tmp_path / "photos" / part / colour
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 128, (64, 64, 3), np.uint8)
                pixels[..., 2 * label] += 120
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "photos"
