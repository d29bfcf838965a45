"""Weights in and out: from files in three namings to a model, and from a model to one safetensors file.

Tensors are read one by one (`edgetune.model.reading`) into the model, which may have been built without memory of its
own (`build_model`), so that nothing is ever held twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgetune.model.header import WeightsMetadata
from edgetune.model.header import read_metadata as read_metadata
from edgetune.model.lora import merged_state
from edgetune.model.reading import LoadReport, metadata_strings, read_arrays, resample
from edgetune.model.spec import ViTSpec
from edgetune.model.tensorfile import FILE_TYPES, WeightsWriter
from edgetune.model.vit import VisionTransformer


def build_model(
    spec: ViTSpec,
    path: Path | None = None,
    *,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[VisionTransformer, LoadReport]:
    """A model with its weights, which take their memory once; arguments and errors as `load_weights`."""
    with torch.device("meta"):
        model = VisionTransformer(spec)
    report = load_weights(model, path, class_names=class_names, seed=seed)
    return model, report


def load_weights(
    model: VisionTransformer,
    path: Path | None = None,
    *,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> LoadReport:
    """Fill `model` from a safetensors file in timm, torchvision or transformers naming.

    Args:
        model: a model on the CPU, or on torch's meta device; parameters end up in float32.
        path: the file; None for the bundled weights or those of the hub, by the model's name.
        class_names: the classes to tell apart. The file's classifier is kept only if it has as many, and if the file
            names its classes, they must be these.
        seed: of a fresh classifier.

    Raises:
        InputError: the file is missing, damaged, pickled, or of another architecture.
    """
    report, tensors = read_weights(model.spec, path, class_names=class_names, seed=seed)
    for name, values in tensors:
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        parameter: nn.Parameter = getattr(owner, leaf)
        if parameter.is_meta:
            setattr(owner, leaf, nn.Parameter(values, requires_grad=parameter.requires_grad))
        else:
            with torch.no_grad():
                parameter.copy_(values)
    return report


def read_weights(
    spec: ViTSpec,
    path: Path | None = None,
    *,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[LoadReport, Iterator[tuple[str, Tensor]]]:
    """`edgetune.model.reading.read_arrays` as torch's tensors."""
    report, arrays = read_arrays(spec, path, class_names=class_names, seed=seed)
    return report, ((name, torch.from_numpy(values)) for name, values in arrays)


def save_weights(
    path: Path,
    model_or_state: nn.Module | Mapping[str, Tensor],
    metadata: WeightsMetadata | Mapping[str, Any],
) -> None:
    """Write weights under timm's names, atomically; adapters are merged in.

    Args:
        path: the file.
        model_or_state: a model, or its tensors by name.
        metadata: goes to the header. A mapping's values that are not text are kept as JSON.

    Raises:
        EdgetuneError: the disk is full or the folder can't be written to; what stood at `path` before is untouched.
    """
    state = merged_state(model_or_state) if isinstance(model_or_state, nn.Module) else model_or_state
    entries = {name: (FILE_TYPES[value.dtype], tuple(value.shape)) for name, value in state.items()}
    with WeightsWriter(path, entries, metadata_strings(metadata)) as writer:
        for name, value in state.items():
            writer.write(name, value)


def resample_positions(positions: Tensor, grid: int) -> Tensor:
    """See `edgetune.model.reading.resample`."""
    values = positions.float().numpy()
    moved = resample(values, grid)
    return positions if moved is values else torch.from_numpy(moved)
