from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgetune.model.registry import find_spec
from edgetune.model.spec import ViTSpec
from edgetune.model.vit import VisionTransformer


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _scatter(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere, large enough that no tensor is without effect on the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("gamma", "lambda1")) or (parameter.ndim == 1 and name.endswith("weight")):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim >= 2 and "token" not in name and "pos" not in name:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * noise)
    return model.eval()


@pytest.fixture
def scatter() -> Callable[..., Any]:
    return _scatter


@pytest.fixture
def save_state(tmp_path: Path) -> Callable[..., Path]:
    def save(model: nn.Module, name: str = "model.safetensors", **metadata: str) -> Path:
        state = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
        save_file(state, tmp_path / name, metadata)
        return tmp_path / name

    return save


@pytest.fixture
def small() -> Callable[..., ViTSpec]:
    """A registered architecture, two blocks deep."""

    def shrink(name: str, image_size: int | None = None, classes: int = 7, depth: int = 2, **other: Any) -> ViTSpec:
        return msgspec.structs.replace(find_spec(name), depth=depth, **other).at(image_size, classes)

    return shrink


@pytest.fixture
def make_model() -> Callable[..., VisionTransformer]:
    def make(spec: ViTSpec, seed: int = 0) -> VisionTransformer:
        model = _scatter(VisionTransformer(spec), seed)
        assert isinstance(model, VisionTransformer)
        return model

    return make
