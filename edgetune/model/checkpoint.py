"""A trained model as a run leaves it: weights whose header says what they are. Importing this does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edgetune import schema
from edgetune.errors import InputError, MissingDependencyError
from edgetune.model.header import WeightsMetadata, read_header
from edgetune.model.hub import find_weights
from edgetune.model.names import match
from edgetune.model.registry import find_spec, list_models
from edgetune.model.spec import ViTSpec

if TYPE_CHECKING:
    from edgetune.model.vit import VisionTransformer

_OF_A_RUN = ("best.safetensors", "last.safetensors")


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
    plan_path = path.parent / "plan.json"
    of_a_run = path.name in _OF_A_RUN and plan_path.exists()  # a plan beside any other file is another run's
    plan = schema.load(plan_path, schema.Plan) if of_a_run else None
    return Checkpoint(path, _as_prepared(find_spec(name), metadata, metadata.classes), metadata.classes, plan)


def find_model(name: str, weights: Path | None = None) -> Checkpoint:
    """A model by its name that was not fine-tuned here, with the weights of a file, of the package or of the hub.

    Classes are those that the file names; where it names none, they are numbered.

    Raises:
        InputError: no such model; its weights can't be had, are another model's, or have no classifier.
        MissingDependencyError: they would have to be fetched, and the client is not installed.
    """
    spec = find_spec(name)
    path = find_weights(spec, weights)
    header = read_header(path)
    found, metadata = match(header, spec), WeightsMetadata.parse(header.metadata)
    if found.classes is None:
        raise InputError(f"{path} has no classifier for {spec.name}; fine-tune it with `edgetune fit` first.")
    classes = metadata.classes or [str(index) for index in range(found.classes)]
    return Checkpoint(path, _as_prepared(spec, metadata, classes), classes, None)


def find_source(run_or_model: Path | str, weights: Path | None = None) -> Checkpoint:
    """A run folder or weights file, as `find_checkpoint`; else a model by name, as `find_model`.

    Raises:
        InputError: it is neither; or `weights` are given beside a run.
    """
    path = Path(run_or_model)
    if path.exists():
        if weights is not None:
            raise InputError(f"--weights goes with a model's name, and {path} has weights of its own; leave one out.")
        return find_checkpoint(path)
    name = str(run_or_model)
    if name.partition(".")[0] not in list_models():
        raise InputError(
            f"{path} does not exist and is no model's name; give the run folder that `edgetune fit --out` made, or a"
            " name that `edgetune models` lists."
        )
    return find_model(name, weights)


def _as_prepared(spec: ViTSpec, metadata: WeightsMetadata, classes: list[str]) -> ViTSpec:
    """The architecture for these classes, at the image size and with the normalisation that the file tells."""
    spec = spec.at(metadata.image_size, len(classes))
    if metadata.mean is not None and metadata.std is not None:
        spec = msgspec.structs.replace(spec, mean=metadata.mean, std=metadata.std)
    return spec
