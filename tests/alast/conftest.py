"""A small real model and images for the method's tests."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from edgetune.model.spec import ViTSpec
from edgetune.model.vit import VisionTransformer, initialise

settings.register_profile("no deadline", deadline=None, max_examples=50)  # boards and busy machines are slow
settings.load_profile("no deadline")

SPEC = ViTSpec(name="tiny", width=24, depth=5, heads=3, patch_size=4, image_size=24, classes=4)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(spec: ViTSpec = SPEC, seed: int = 0, scale: float = 6.0) -> VisionTransformer:
    """A randomly initialised model whose class token moves enough for budgets to move."""
    generator = torch.Generator().manual_seed(seed)
    model = VisionTransformer(spec)
    initialise(model, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.mul_(scale)
            if name.endswith("gamma"):
                parameter.fill_(1.0)
    return model


def batches(sizes, spec: ViTSpec = SPEC, seed: int = 1):
    """Random images and labels, one pair per size."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, spec.image_size, spec.image_size, generator=generator),
            torch.randint(0, spec.classes, (size,), generator=generator),
        )
        for size in sizes
    ]
