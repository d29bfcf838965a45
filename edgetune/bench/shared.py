"""What every peer is given alike: edgetune's batches, its initial weights in timm's model, one way of evaluating."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

from edgetune.data.folder import scan
from edgetune.data.loader import Loader
from edgetune.export.timm import timm_config
from edgetune.model.registry import find_spec
from edgetune.model.spec import ViTSpec
from edgetune.model.weights import build_model
from edgetune.schema import Plan


def spec_of(plan: Plan) -> ViTSpec:
    """The model of a plan, at its image size and with its classes."""
    return find_spec(plan.model).at(plan.image_size, len(plan.data.classes))


def loaders(plan: Plan) -> tuple[Loader, Loader]:
    """The batches that `edgetune fit` takes, decoded in this process: for training, and for validation."""
    spec = find_spec(plan.model)
    folder = scan(Path(plan.data.path), plan.seed)
    common: dict[str, Any] = {"image_size": plan.image_size, "mean": spec.mean, "std": spec.std, "seed": plan.seed}
    common["batch_size"] = plan.batch_size
    train = Loader(folder.train, augment=plan.recipe.augment, flip=plan.recipe.flip, **common)
    return train, Loader(folder.val, augment=False, shuffle=False, **common)


def load_model(plan: Plan) -> Any:
    """A model of timm with the weights edgetune starts from: the file's, and a classifier from the same seed."""
    spec = spec_of(plan)
    config = timm_config(spec, plan.data.classes)
    model = timm.create_model(config["architecture"], num_classes=spec.classes, **config["model_args"])
    model.load_state_dict(initial_weights(plan))
    return model


def initial_weights(plan: Plan) -> dict[str, torch.Tensor]:
    """The weights edgetune starts from, by timm's names."""
    weights = Path(plan.weights) if plan.weights else None
    ours, _ = build_model(spec_of(plan), weights, class_names=plan.data.classes, seed=plan.seed)
    state: dict[str, torch.Tensor] = ours.state_dict()
    return state


def accuracy_of(model: Any, val: Loader, logits: Callable[[Any], Any] = lambda answer: answer) -> float | None:
    """The share of validation images a model is right on; it is left in training mode."""
    right = seen = 0
    model.eval()
    with torch.no_grad():
        for batch in val.epoch(0):
            answers = logits(model(torch.from_numpy(batch.images))).argmax(1)
            right += int((answers == torch.from_numpy(batch.labels)).sum())
            seen += len(batch.labels)
    model.train()
    return right / seen if seen else None
