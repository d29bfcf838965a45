"""What a weights file holds for a model, array by array, in any of three namings. Never imports torch.

What a model needs and a file does not have is only ever the classifier: that one is drawn afresh, with a seed. Position
embeddings made for another image size are resampled as timm does it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgetune.errors import InputError
from edgetune.model.arrayfile import ArrayStore, ArrayWriter
from edgetune.model.draws import Draws
from edgetune.model.header import WeightsMetadata
from edgetune.model.hub import find_weights
from edgetune.model.names import Match, Naming, match
from edgetune.model.spec import ViTSpec

Floats = NDArray[np.float32]


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came out of a weights file."""

    path: str
    naming: Naming
    classes_in_file: int | None  # None where the file has no classifier of this architecture
    fresh_head: bool  # the classifier starts from random weights
    resampled_positions: tuple[int, int] | None  # patches along one side, in the file and in the model
    unused: tuple[str, ...]  # tensors of the file that the model has no use for
    metadata: WeightsMetadata


def read_arrays(
    spec: ViTSpec,
    path: Path | None = None,
    *,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[LoadReport, Iterator[tuple[str, Floats]]]:
    """What a weights file holds for `spec`, and its tensors one by one.

    Args:
        spec: the model.
        path: the file; None for the bundled weights or those of the hub, by the model's name.
        class_names: the classes to tell apart. The file's classifier is kept only if it has as many, and if the file
            names its classes, they must be these.
        seed: of a fresh classifier.

    Returns:
        The report, and all tensors of `spec` under timm's names, in its order, new and in float32. The file is open
        until the last one was taken.

    Raises:
        InputError: the file is missing, damaged, pickled, or of another architecture.
    """
    store = ArrayStore(find_weights(spec, path))
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
    return report, _arrays(store, found, spec, seed if fresh_head else None)


def write_base(
    spec: ViTSpec, source: Path | None, target: Path, *, class_names: Sequence[str], seed: int
) -> LoadReport:
    """Write the weights that a run starts from to one float32 file under timm's names; one tensor is held at a time.

    Raises:
        InputError: as `read_arrays`.
        StorageError: the disk is full or the folder can't be written to; what stood at `target` before is untouched.
    """
    report, arrays = read_arrays(spec, source, class_names=class_names, seed=seed)
    entries = {parameter.name: ("F32", parameter.shape) for parameter in spec.parameters()}
    with ArrayWriter(target, entries, WeightsMetadata.of(spec, list(class_names)).strings()) as writer:
        for name, values in arrays:
            writer.write_array(name, values)
    return report


def metadata_strings(metadata: WeightsMetadata | Mapping[str, Any]) -> dict[str, str]:
    """What goes to a header: text by name, everything that is not text as JSON."""
    if isinstance(metadata, WeightsMetadata):
        return metadata.strings()
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in metadata.items()
    }


def resample(positions: Floats, grid: int) -> Floats:
    """Position embeddings (1, P, C) of a square grid moved to `grid` patches a side: bicubic, antialiased, as timm."""
    side = math.isqrt(positions.shape[1])
    if side == grid:
        return positions
    along = _bicubic(side, grid)
    square = positions.reshape(side, side, -1)
    # one axis after the other, and not as matrix products: numpy's BLAS would keep 5 MiB for the rest of the run
    rows = np.einsum("ia,abc->ibc", along, square)
    found: Floats = np.einsum("jb,ibc->ijc", along, rows).astype(np.float32)
    return found.reshape(1, grid * grid, -1)


def _bicubic(before: int, after: int) -> NDArray[np.float64]:
    """Weights (after, before) of a resampling along one axis: R. Keys's cubic with a = -0.5, widened when shrinking."""
    scale = before / after
    stretch = max(1.0, scale)
    weights = np.zeros((after, before))
    for row, centre in zip(weights, scale * (np.arange(after) + 0.5), strict=True):
        low, high = max(0, int(centre - 2 * stretch + 0.5)), min(before, int(centre + 2 * stretch + 0.5))
        away = np.abs((np.arange(low, high) - centre + 0.5) / stretch)
        near, far = (1.5 * away - 2.5) * away**2 + 1, -0.5 * (((away - 5) * away + 8) * away - 4)
        row[low:high] = np.where(away < 1, near, np.where(away < 2, far, 0))
        row /= row.sum()
    return weights


def _arrays(store: ArrayStore, found: Match, spec: ViTSpec, seed: int | None) -> Iterator[tuple[str, Floats]]:
    """All tensors of `spec`; those of the classifier are drawn where there is a seed."""
    draws = Draws(seed or 0)
    heads = {f"{head}.{kind}" for head in spec.classifiers for kind in ("weight", "bias")}
    with store:
        for name, shape in ((parameter.name, parameter.shape) for parameter in spec.parameters()):
            if seed is not None and name in heads:  # timm cuts its normal numbers off at 100 deviations
                yield name, draws.normal(shape, 0.02) if len(shape) > 1 else np.zeros(shape, np.float32)
                continue
            if name == "pos_embed":
                values = _positions(store, found, spec)
            else:
                values = _joined(store, found.sources[name], shape)
            if name == "cls_token" and found.positions[0] != spec.prefix_positions:
                # DINOv2 with registers: one position for the class token, which the model keeps in the token
                values += _floats(store, found.sources["pos_embed"][0])[:, : found.positions[0]]
            if not math.isfinite(float(values.sum())):
                raise InputError(f"{store.path} holds values in {name} that are not numbers; fetch or copy it anew.")
            yield name, values


def _floats(store: ArrayStore, name: str) -> Floats:
    """A tensor of the file in float32."""
    values: Floats = store.read_array(name, np.empty(store.shape(name), np.float32))
    return values


def _joined(store: ArrayStore, names: Sequence[str], shape: tuple[int, ...]) -> Floats:
    """Tensors of the file joined along the first axis, in float32 and of the model's shape."""
    values, start = np.empty(shape, np.float32), 0
    flat = values.reshape(-1)
    for name in names:
        theirs = store.shape(name)
        store.read_array(name, flat[start : start + math.prod(theirs)].reshape(theirs))
        start += math.prod(theirs)
    return values


def _positions(store: ArrayStore, found: Match, spec: ViTSpec) -> Floats:
    """The model's position embeddings. What the file has for a class token that has none in the model is left out."""
    values, prefix = _floats(store, found.sources["pos_embed"][0]), found.positions[0]
    patches = resample(values[:, prefix:], spec.grid)
    return np.concatenate([values[:, : spec.prefix_positions], patches], 1)
