"""Single training steps of the trainers that are compared, for scripts that time or profile them.

`eager-full` is timm's model with torch's AdamW in eager PyTorch; the others are entries of a recipe file (recipes.json,
levers.json) in the lean trainer, on random pixels, or on random features where their plan caches features.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch.nn import functional as F
from workloads import prepare_synthetic

from edgetune.allocator import settle_allocators
from edgetune.data.loader import Batch
from edgetune.model.registry import find_spec
from edgetune.model.spec import ViTSpec
from edgetune.model.vit import VisionTransformer, initialise
from edgetune.model.weights import save_weights
from edgetune.plan import make_plan
from edgetune.schema import Plan
from edgetune.train import torch_engine
from edgetune.train.lean.engine import LeanEngine

CLASSES = 4  # of the synthetic images
EAGER = "eager-full"
RECIPES = Path(__file__).resolve().parent / "recipes.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the scripts ask of a step."""
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)


def prepare(scratch: Path, model: str, image_size: int) -> None:
    """Write images and random weights, for `plan_of` and `step_of`."""
    prepare_synthetic(scratch / "data", train=8 * CLASSES, val=CLASSES, side=image_size)
    _write_weights(find_spec(model).at(image_size, CLASSES), scratch / "weights.safetensors")


def plan_of(name: str, scratch: Path, recipes: Path = RECIPES, **settings: Any) -> Plan:
    """The plan of a trainer, by `eager-full` or an entry of a recipe file; settings as for `make_plan`."""
    recipe = {EAGER: {"method": "full", "arguments": []}, **json.loads(recipes.read_text())}[name]
    levers = [text for text in recipe["arguments"] if text != "--lever"]
    return make_plan(scratch / "data", method=recipe["method"], levers=levers, workers=0, **settings)


def step_of(plan: Plan, scratch: Path) -> Callable[[], object]:
    """One step each time it is called."""
    settle_allocators(plan)
    torch_engine.start(plan)
    return _eager(plan) if plan.trainer == "autograd" else _lean(plan, scratch / "weights.safetensors")


def _write_weights(spec: ViTSpec, path: Path) -> None:
    model = VisionTransformer(spec)
    initialise(model)
    save_weights(path, model, {})


def _eager(plan: Plan) -> Callable[[], object]:
    """A step of timm's model."""
    model = timm.create_model(plan.model, num_classes=CLASSES, img_size=plan.image_size, pretrained=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    images = torch.randn(plan.batch_size, 3, plan.image_size, plan.image_size)
    labels = torch.arange(plan.batch_size) % CLASSES

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _lean(plan: Plan, weights: Path) -> Callable[[], object]:
    """A step of the lean trainer: on images, or on features where they are cached."""
    engine = LeanEngine(plan, weights)
    spec = engine.spec
    labels = torch.arange(plan.batch_size).numpy() % CLASSES
    if plan.feature_cache is None:
        source = torch.randn(plan.batch_size, 3, plan.image_size, plan.image_size)
    else:
        source = torch.randn(plan.batch_size, plan.feature_cache.tokens, spec.width)
    return lambda: engine.train_step(Batch(source.clone().numpy(), labels), 1e-5, plan.micro_batch_size)
