"""Whole models from file to file, one tensor at a time: weights to train from, and a trained model to keep.

A run turns the weights it starts from into one file under timm's names (`convert_weights`), in the precision each
tensor will be used in, reads what does not train from there when it is needed (`WeightsStore`), and at the end of an
epoch writes what trained together with the rest (`copy_weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from edgetune.model.header import WeightsMetadata
from edgetune.model.reading import LoadReport, metadata_strings
from edgetune.model.spec import ViTSpec
from edgetune.model.tensorfile import WeightsStore as WeightsStore
from edgetune.model.tensorfile import WeightsWriter as WeightsWriter
from edgetune.model.weights import read_weights


def convert_weights(
    spec: ViTSpec,
    source: Path | None,
    target: Path,
    *,
    dtype: Callable[[str], str],
    class_names: Sequence[str] | None,
    seed: int,
) -> LoadReport:
    """Write the weights of `spec` to one file under timm's names; no more than one tensor is held at a time.

    Args:
        spec: the model.
        source: the file; None for the bundled weights or those of the hub.
        target: the new file, put there when it is whole.
        dtype: safetensors' name of the floating-point type a tensor is kept in, by its timm name.
        class_names: as for `load_weights`.
        seed: of a fresh classifier.

    Returns:
        What came out of the source, as `load_weights` reports it.

    Raises:
        InputError: as `load_weights`; or a weight is too large for its new type.
        StorageError: the disk is full or the folder can't be written to; what stood at `target` before is untouched.
    """
    report, tensors = read_weights(spec, source, class_names=class_names, seed=seed)
    entries = {parameter.name: (dtype(parameter.name), parameter.shape) for parameter in spec.parameters()}
    metadata = WeightsMetadata.of(spec, list(class_names) if class_names is not None else None)
    with WeightsWriter(target, entries, metadata.strings()) as writer:
        for name, values in tensors:
            writer.write(name, values)
    return report


def copy_weights(
    path: Path,
    store: WeightsStore,
    replaced: Mapping[str, Tensor],
    metadata: WeightsMetadata | Mapping[str, Any],
) -> None:
    """Write a whole model in float32: `replaced` where it has a tensor, `store` for the rest.

    Args:
        path: the file.
        store: the weights that did not train.
        replaced: tensors by name. Each is asked for once and let go, so that a mapping may compute them as it is asked.
        metadata: as for `save_weights`.

    Raises:
        KeyError: `replaced` has a name that the store lacks.
        StorageError: the disk is full or the folder can't be written to; what stood at `path` before is untouched.
    """
    strange = sorted(set(replaced) - set(store.names))
    if strange:
        raise KeyError(f"no such tensor: {strange[0]}")
    entries = {name: ("F32", store.shape(name)) for name in store.names}
    with WeightsWriter(path, entries, metadata_strings(metadata)) as writer:
        for name in store.names:
            if name in replaced:
                writer.write(name, replaced[name])
            else:
                writer.copy(name, store)
