"""Weights in and out: from files in three namings to a model, and from a model to one safetensors file.

Tensors are read one by one into the model, which may have been built without memory of its own (`build_model`), so
that nothing is ever held twice. What a model needs and a file does not have is only ever the classifier: that one is
drawn afresh, with a seed. Position embeddings made for another image size are resampled as timm does it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from edgetune.errors import InputError
from edgetune.files import atomic_path
from edgetune.model.header import WeightsMetadata, read_header
from edgetune.model.header import read_metadata as read_metadata
from edgetune.model.hub import find_weights
from edgetune.model.lora import merged_state
from edgetune.model.names import Match, Naming, match
from edgetune.model.spec import ViTSpec
from edgetune.model.vit import VisionTransformer


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came out of a weights file."""

    path: str
    naming: Naming
    classes_in_file: int | None  # None where the file has no classifier of this architecture
    fresh_head: bool  # the classifier starts from random weights
    resampled_positions: tuple[int, int] | None  # patches along one side, in the file and in the model
    unused: tuple[str, ...]  # tensors of the file that the model has no use for
    metadata: WeightsMetadata


def build_model(
    spec: ViTSpec,
    path: Path | None = None,
    *,
    pretrained_tag: str | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[VisionTransformer, LoadReport]:
    """A model with its weights, which take their memory once; arguments and errors as `load_weights`."""
    with torch.device("meta"):
        model = VisionTransformer(spec)
    report = load_weights(model, path, pretrained_tag=pretrained_tag, class_names=class_names, seed=seed)
    return model, report


def load_weights(
    model: VisionTransformer,
    path: Path | None = None,
    *,
    pretrained_tag: str | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> LoadReport:
    """Fill `model` from a safetensors file in timm, torchvision or transformers naming.

    Args:
        model: a model on the CPU, or on torch's meta device; parameters end up in float32.
        path: the file; None for the bundled weights or those of the hub, by the model's name.
        pretrained_tag: which weights of the hub; see `find_weights`.
        class_names: the classes to tell apart. The file's classifier is kept only if it has as many, and if the file
            names its classes, they must be these.
        seed: of a fresh classifier.

    Raises:
        InputError: the file is missing, damaged, pickled, or of another architecture.
    """
    header = read_header(find_weights(model.spec, path, pretrained_tag=pretrained_tag))
    found = match(header, model.spec)
    metadata = WeightsMetadata.parse(header.metadata)
    other_classes = class_names is not None and metadata.classes is not None and metadata.classes != list(class_names)
    heads = {f"{head}.{kind}" for head in model.spec.classifiers for kind in ("weight", "bias")}
    fresh_head = other_classes or found.classes != model.spec.classes
    wanted = {name: names for name, names in found.sources.items() if not (fresh_head and name in heads)}

    shapes = {parameter.name: parameter.shape for parameter in model.spec.parameters()}
    class_position: Tensor | None = None
    # The file is opened anew for every few tensors: its pages are mapped into memory while it is open, and would
    # otherwise add up to a second copy of the weights.
    for _, group in groupby(wanted.items(), key=lambda item: item[0].rpartition(".attn.")[0] or item[0][:9]):
        with safe_open(header.path, framework="pt") as file:
            for name, names in group:
                parts = [file.get_tensor(part) for part in names]
                if name == "pos_embed":
                    values, class_position = _positions(parts[0], found, model.spec)
                    parts = [values]
                _fill(model, name, shapes[name], parts, header.path)
    if class_position is not None:  # DINOv2 with registers: one position for the class token, kept in the token
        with torch.no_grad():
            model.cls_token.add_(class_position)
    if fresh_head:
        _draw_classifier(model, seed)
    grids = (found.positions[1], model.spec.grid)
    return LoadReport(
        path=str(header.path),
        naming=found.naming,
        classes_in_file=found.classes,
        fresh_head=fresh_head,
        resampled_positions=grids if grids[0] != grids[1] else None,
        unused=found.unused,
        metadata=metadata,
    )


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
    if isinstance(metadata, WeightsMetadata):
        strings = metadata.strings()
    else:
        strings = {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in metadata.items()
        }
    with atomic_path(path) as temporary:
        try:
            save_file({name: value.detach().contiguous() for name, value in state.items()}, temporary, strings)
        except Exception as error:
            raise _as_os_error(error) from error


def resample_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings (1, P, C) of a square grid moved to `grid` patches a side: bicubic, antialiased, as timm."""
    side = math.isqrt(positions.shape[1])
    if side == grid:
        return positions
    square = positions.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
    return square.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)


def _positions(values: Tensor, found: Match, spec: ViTSpec) -> tuple[Tensor, Tensor | None]:
    """The model's position embeddings, and the one of the class token where the model keeps it in the token."""
    prefix = found.positions[0]
    patches = resample_positions(values[:, prefix:].float(), spec.grid)
    if prefix == spec.prefix_positions:
        return torch.cat([values[:, :prefix].float(), patches], 1), None
    return patches, values[:, :prefix].float()


def _fill(model: nn.Module, name: str, shape: tuple[int, ...], parts: Sequence[Tensor], path: Path) -> None:
    """Copy the values of one parameter, joined along the first axis, converting as they go."""
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    parameter: nn.Parameter = getattr(owner, leaf)
    if parameter.is_meta:
        parameter = nn.Parameter(torch.empty(shape), requires_grad=parameter.requires_grad)
        setattr(owner, leaf, parameter)
    with torch.no_grad():
        start = 0
        for part in parts:
            rows = len(part) if len(parts) > 1 else shape[0]
            parameter[start : start + rows].copy_(part.reshape(rows, *shape[1:]))
            start += rows
        if not math.isfinite(float(parameter.sum())):
            raise InputError(f"{path} holds values in {name} that are not numbers; fetch or copy it anew.")


def _draw_classifier(model: VisionTransformer, seed: int) -> None:
    """A fresh classifier: truncated normal weights, zero biases, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for name in model.spec.classifiers:
        linear: nn.Linear = getattr(model, name)
        if linear.weight.is_meta:
            linear.weight = nn.Parameter(torch.empty(linear.weight.shape))
            linear.bias = nn.Parameter(torch.empty(linear.bias.shape))
        nn.init.trunc_normal_(linear.weight, std=0.02, generator=generator)
        nn.init.zeros_(linear.bias)


def _as_os_error(error: Exception) -> Exception:
    """The system's error that safetensors has wrapped in its own; the number is in its text."""
    number = re.search(r"(?:os error |code: )(\d+)", str(error))
    if number is None:
        return error
    return OSError(int(number[1]), os.strerror(int(number[1])))
