"""`edgetune.model.arrayfile` for torch's tensors, of which numpy lacks bfloat16 and devices."""

from __future__ import annotations

import torch
from torch import Tensor

from edgetune.model.arrayfile import CHUNK_BYTES, ArrayStore, ArrayWriter

TORCH_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}  # by safetensors' name
FILE_TYPES = {kind: name for name, kind in TORCH_TYPES.items()}


class WeightsWriter(ArrayWriter):
    """See `ArrayWriter`."""

    @torch.no_grad()
    def write(self, name: str, values: Tensor) -> None:
        """Write one tensor, converted to its type in the file.

        Raises:
            InputError: a number is too large for that type.
            KeyError: the file has no such tensor.
            ValueError: the shape differs, the tensor was written before, or fractions would become integers.
        """
        kind = self._announced(name, tuple(values.shape))
        target = TORCH_TYPES[kind]
        if values.is_floating_point() and not target.is_floating_point:
            raise ValueError(f"{name} is {FILE_TYPES[values.dtype]}, announced was {kind}")
        place = 0
        for chunk in values.reshape(-1).split(CHUNK_BYTES // target.itemsize):
            converted = chunk.to("cpu", target)
            if converted.dtype != chunk.dtype and converted.isinf().any() and not chunk.isinf().any():
                raise self._too_large(name, kind)
            self._put(name, _bytes(converted), place)
            place += converted.nbytes
        self._done(name)


class WeightsStore(ArrayStore):
    """See `ArrayStore`."""

    @torch.no_grad()
    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """One tensor.

        Args:
            name: of the tensor.
            out: contiguous, of the tensor's shape; it is filled, its type kept, with no second copy on the way.

        Returns:
            `out`, or a new tensor of the file's type.
        """
        kind = TORCH_TYPES[self.header.types[name]]
        shape = self.header.shapes[name]
        if out is None:
            out = torch.empty(shape, dtype=kind)
        if tuple(out.shape) != shape or not out.is_contiguous():
            raise ValueError(f"{name} has shape {shape}, the place for it {tuple(out.shape)}, which must be contiguous")
        flat, start = out.view(-1), self._starts[name]
        if out.dtype == kind and out.device.type == "cpu":
            self._read(_bytes(flat), start)
            return out
        buffer = torch.empty(CHUNK_BYTES // kind.itemsize, dtype=kind)
        for part in flat.split(len(buffer)) if len(flat) else ():
            chunk = buffer[: len(part)]
            self._read(_bytes(chunk), start)
            start += chunk.nbytes
            part.copy_(chunk)
        return out


def _bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous one-dimensional tensor on the CPU."""
    return values.view(torch.uint8).numpy().data
