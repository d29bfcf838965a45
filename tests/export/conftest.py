from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from edgetune.model.header import WeightsMetadata
from edgetune.model.registry import find_spec
from edgetune.model.vit import VisionTransformer
from edgetune.model.weights import save_weights


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., tuple[Path, VisionTransformer]]:
    """A weights file as a run leaves it: any architecture, two blocks deep, with random weights of natural size."""

    def make(name: str, image_size: int, classes: int = 7, depth: int = 2) -> tuple[Path, VisionTransformer]:
        spec = msgspec.structs.replace(find_spec(name), depth=depth).at(image_size, classes)
        model = VisionTransformer(spec).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if key.endswith("gamma") or (parameter.ndim == 1 and key.endswith("weight")):
                    parameter.copy_(1 + 0.2 * noise)
                elif parameter.ndim >= 2 and "token" not in key and "pos" not in key:
                    parameter.copy_(noise / parameter[0].numel() ** 0.5)
                else:
                    parameter.copy_(0.2 * noise)
        path = tmp_path / f"{name}.safetensors"
        save_weights(path, model, WeightsMetadata.of(spec, [f"class {index}" for index in range(classes)]))
        return path, model

    return make


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """A few images with something on them."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(5):
        small = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
        path = tmp_path / f"photo{index}.png"
        Image.fromarray(small).resize((50 + 10 * index, 60), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths
