from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from edgetune import schema
from edgetune.model.header import WeightsMetadata
from edgetune.model.registry import find_spec
from edgetune.model.vit import VisionTransformer
from edgetune.model.weights import save_weights

COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _patch(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 20, (24, 30, 3))
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def paint() -> Callable[..., None]:
    return _patch


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Flat colour patches: blue, green, red; three images each in val."""
    root = tmp_path / "photos"
    for part, count in (("train", 4), ("val", 3)):
        for name, colour in COLOURS.items():
            for index in range(count):
                _patch(root / part / name / f"{index}.png", colour, index)
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose model tells blue, green and red apart: a transformer that reads the mean colour.

    The blocks are shut (their outputs are zero); the class token cannot see the patches then, so it is left out and the
    patches are averaged.
    """
    spec = msgspec.structs.replace(
        find_spec("vit_wee_patch16_reg1_gap_256").at(32, 3), depth=1, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    model = VisionTransformer(spec)
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    state["fc_norm.weight"].fill_(1)
    for channel in range(3):
        state["patch_embed.proj.weight"][channel, channel] = 1 / 256
    for label, channel in enumerate((2, 1, 0)):
        state["head.weight"][label, channel] = 1
    folder = tmp_path / "run"
    save_weights(folder / "best.safetensors", state, WeightsMetadata.of(spec, list(COLOURS)))
    return folder


@pytest.fixture(autouse=True)
def _one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's model is one block deep."""
    monkeypatch.setattr(
        "edgetune.model.checkpoint.find_spec", lambda name: msgspec.structs.replace(find_spec(name), depth=1)
    )


@pytest.fixture
def plan_of() -> Callable[[Path, int], schema.Plan]:
    """A plan as a run keeps it, for a data folder."""

    def make(data: Path, seed: int) -> schema.Plan:
        bill = dict.fromkeys(("runtime", "weights", "gradients", "optimizer", "activations", "workspace", "data"), 1)
        times = dict.fromkeys(("step_s", "epoch_s", "total_s", "epoch_energy_j", "total_energy_j"))
        return msgspec.convert(
            {
                "schema": "edgetune/plan/1",
                "model": "vit_wee_patch16_reg1_gap_256",
                "weights": None,
                "image_size": 32,
                "method": "full",
                "engine": "torch",
                "device": "cpu",
                "threads": 1,
                "workers": 0,
                "seed": seed,
                "data": {
                    "path": str(data),
                    "classes": list(COLOURS),
                    "train_images": 1,
                    "val_images": 1,
                    "split": "val",
                },
                "caps": {},
                "batch_size": 2,
                "micro_batch_size": 2,
                "trainer": "autograd",
                "precision": "fp32",
                "frozen_precision": "fp32",
                "frozen_weights": "fp32",
                "optimizer": "adamw",
                "optimizer_state": "fp32",
                "saved_activations": "full",
                "saved_precision": "fp32",
                "part_tokens": 400,
                "feature_cache": None,
                "allocator": "fast",
                "power_w": None,
                "blocks": [],
                "k": 1,
                "lowest_trainable_block": 0,
                "embeddings_trainable": True,
                "epochs": 1,
                "steps_per_epoch": 1,
                "total_steps": 1,
                "wanted_epochs": 1,
                "recipe": {"learning_rate": 1e-4, "weight_decay": 0.0, "warmup_steps": 0},
                "alast": None,
                "lora": None,
                "predicted": {"peak_memory_bytes": 7, "memory": bill, "train_flops_per_image": 1, **times},
                "why": [],
                "warnings": [],
                "edgetune_version": "0",
                "created": schema.now(),
            },
            schema.Plan,
        )

    return make
