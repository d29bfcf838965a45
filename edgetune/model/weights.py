"""Weights in and out: from files in three namings to a model, and from a model to one safetensors file.

Tensors are read one by one into the model, which may have been built without memory of its own (`build_model`), so
that nothing is ever held twice. What a model needs and a file does not have is only ever the classifier: that one is
drawn afresh, with a seed. Position embeddings made for another image size are resampled as timm does it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgetune.errors import InputError
from edgetune.model.header import WeightsMetadata
from edgetune.model.header import read_metadata as read_metadata
from edgetune.model.hub import find_weights
from edgetune.model.lora import merged_state
from edgetune.model.names import Match, Naming, match
from edgetune.model.spec import ViTSpec
from edgetune.model.tensorfile import FILE_TYPES, WeightsStore, WeightsWriter
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
    report, tensors = read_weights(model.spec, path, pretrained_tag=pretrained_tag, class_names=class_names, seed=seed)
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
    pretrained_tag: str | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[LoadReport, Iterator[tuple[str, Tensor]]]:
    """What a weights file holds for `spec`, and its tensors one by one; arguments and errors as `load_weights`.

    Returns:
        The report, and all tensors of `spec` under timm's names, in its order, new and in float32. The file is open
        until the last one was taken.
    """
    store = WeightsStore(find_weights(spec, path, pretrained_tag=pretrained_tag))
    found = match(store.header, spec)
    metadata = WeightsMetadata.parse(store.header.metadata)
    other_classes = class_names is not None and metadata.classes is not None and metadata.classes != list(class_names)
    fresh_head = other_classes or found.classes != spec.classes
    grids = (found.positions[1], spec.grid)
    report = LoadReport(
        path=str(store.path),
        naming=found.naming,
        classes_in_file=found.classes,
        fresh_head=fresh_head,
        resampled_positions=grids if grids[0] != grids[1] else None,
        unused=found.unused,
        metadata=metadata,
    )
    return report, _tensors(store, found, spec, seed if fresh_head else None)


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
    """Position embeddings (1, P, C) of a square grid moved to `grid` patches a side: bicubic, antialiased, as timm."""
    side = math.isqrt(positions.shape[1])
    if side == grid:
        return positions
    square = positions.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
    return square.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)


def metadata_strings(metadata: WeightsMetadata | Mapping[str, Any]) -> dict[str, str]:
    """What goes to a header: text by name, everything that is not text as JSON."""
    if isinstance(metadata, WeightsMetadata):
        return metadata.strings()
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in metadata.items()
    }


def _tensors(store: WeightsStore, found: Match, spec: ViTSpec, seed: int | None) -> Iterator[tuple[str, Tensor]]:
    """All tensors of `spec`; those of the classifier are drawn where there is a seed."""
    generator = torch.Generator().manual_seed(seed or 0)
    heads = {f"{head}.{kind}" for head in spec.classifiers for kind in ("weight", "bias")}
    with store:
        for name, shape in ((parameter.name, parameter.shape) for parameter in spec.parameters()):
            if seed is not None and name in heads:
                yield name, _draw_classifier(shape, generator)
                continue
            if name == "pos_embed":
                values = _positions(store, found, spec)
            else:
                values = _joined(store, found.sources[name], shape)
            if name == "cls_token" and found.positions[0] != spec.prefix_positions:
                # DINOv2 with registers: one position for the class token, which the model keeps in the token
                values += _read_float(store, found.sources["pos_embed"][0])[:, : found.positions[0]]
            if not math.isfinite(float(values.sum())):
                raise InputError(f"{store.path} holds values in {name} that are not numbers; fetch or copy it anew.")
            yield name, values


def _read_float(store: WeightsStore, name: str) -> Tensor:
    """A tensor of the file in float32."""
    return store.read(name, torch.empty(store.shape(name)))


def _joined(store: WeightsStore, names: Sequence[str], shape: tuple[int, ...]) -> Tensor:
    """Tensors of the file joined along the first axis, in float32 and of the model's shape."""
    values, start = torch.empty(shape), 0
    flat = values.view(-1)
    for name in names:
        theirs = store.shape(name)
        store.read(name, flat[start : start + math.prod(theirs)].view(theirs))
        start += math.prod(theirs)
    return values


def _positions(store: WeightsStore, found: Match, spec: ViTSpec) -> Tensor:
    """The model's position embeddings. What the file has for a class token that has none in the model is left out."""
    values, prefix = _read_float(store, found.sources["pos_embed"][0]), found.positions[0]
    patches = resample_positions(values[:, prefix:], spec.grid)
    return torch.cat([values[:, : spec.prefix_positions], patches], 1)


def _draw_classifier(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A tensor of a fresh classifier: normal weights (timm cuts them off at 100 deviations), zero biases."""
    values = torch.zeros(shape)
    return values.normal_(std=0.02, generator=generator) if len(shape) > 1 else values
