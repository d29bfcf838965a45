"""A trained model as a run leaves it: weights whose header says what they are. Importing this does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edgetune import schema
from edgetune.errors import InputError, MissingDependencyError
from edgetune.model.header import WeightsMetadata, read_header
from edgetune.model.registry import find_spec, list_models
from edgetune.model.spec import ViTSpec

if TYPE_CHECKING:
    from edgetune.model.vit import VisionTransformer


class Checkpoint(NamedTuple):
    """Weights on disk, the model they are for, the classes it knows, and the plan of the run where there is one."""

    path: Path
    spec: ViTSpec
    classes: list[str]
    plan: schema.Plan | None

    def load(self) -> VisionTransformer:
        """The model, ready to answer.

        Raises:
            InputError: the file is damaged, or not what its header says.
            MissingDependencyError: torch is not installed.
        """
        try:
            from edgetune.model.weights import build_model
        except ModuleNotFoundError as error:
            raise MissingDependencyError(error.name or "torch", "torch", "using a model") from None
        model, report = build_model(self.spec, self.path)
        if report.fresh_head:
            raise InputError(f"{self.path} has no classifier for its {len(self.classes)} classes; train it with fit.")
        return model.eval()


def find_checkpoint(run: Path) -> Checkpoint:
    """The best checkpoint of a run folder, or a weights file that edgetune wrote.

    Raises:
        InputError: there is none, or it does not say what it is.
    """
    path = run / "best.safetensors" if run.is_dir() else run
    if run.is_dir() and not path.exists():
        if not (run / "plan.json").exists():
            raise InputError(f"{run} is not a run folder: it has neither plan.json nor best.safetensors.")
        raise InputError(
            f"{run} has no checkpoint yet: its first epoch did not end; go on with `edgetune fit --resume --out {run}`."
        )
    if not path.exists():
        raise InputError(f"{run} does not exist; give the run folder that `edgetune fit --out` made.")
    metadata = WeightsMetadata.parse(read_header(path).metadata)
    name = metadata.model or (path.stem if path.stem in list_models() else None)
    if name is None or metadata.classes is None:
        raise InputError(f"{path} does not say which model and classes it is for; give a run folder of edgetune.")
    spec = find_spec(name).at(metadata.image_size, len(metadata.classes))
    if metadata.mean is not None and metadata.std is not None:
        spec = msgspec.structs.replace(spec, mean=metadata.mean, std=metadata.std)
    plan_path = path.parent / "plan.json"
    plan = schema.load(plan_path, schema.Plan) if plan_path.exists() else None
    return Checkpoint(path, spec, metadata.classes, plan)
