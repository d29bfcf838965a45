"""A safetensors file, read and written one tensor at a time, so that no process ever holds the whole model.

The safetensors library writes from memory all at once, and reads by mapping the file, whose pages then count as the
process's own until it is closed. Here a tensor goes to and from its place in the file by plain reads and writes,
through a small buffer where it changes its type. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from edgetune.errors import InputError
from edgetune.files import atomic_path, read_at, write_at
from edgetune.model.header import read_header

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
SCALE = ".scale"  # `name` in 8 bits is the product of its integers and the rows' scales, kept as `name.scale`
_CHUNK_BYTES = 1 << 20  # of a tensor that changes its type on the way


class WeightsWriter:
    """A file in the making, as a context manager: the header comes first, then tensors in any order.

    What stands at the path is replaced when the block ends without error, and stays as it is otherwise.

    Args:
        path: the file.
        entries: every tensor that will be written: safetensors' name of its type, and its shape.
        metadata: goes to the header.

    Raises:
        StorageError: the disk is full or the folder can't be written to (also from `write`).
        ValueError: a tensor was never written (when the block ends).
    """

    def __init__(self, path: Path, entries: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]):
        self._path = path
        self._entries = dict(entries)
        self._missing = dict.fromkeys(entries)
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        # The widest types first: every tensor is then aligned for whoever maps the file.
        order = sorted(entries, key=lambda name: -TORCH_TYPES[entries[name][0]].itemsize)
        starts, end = {}, 0
        for name in order:
            kind, shape = entries[name]
            starts[name], end = end, end + math.prod(shape) * TORCH_TYPES[kind].itemsize
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [starts[name], end]}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._header = len(text).to_bytes(8, "little") + text
        self._starts = {name: len(self._header) + start for name, start in starts.items()}

    def __enter__(self) -> WeightsWriter:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._path))
            file = stack.enter_context(open(temporary, "wb", buffering=0))
            stack.push(self._check)
            self._handle = file.fileno()
            write_at(self._handle, memoryview(self._header), 0)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _check(self, kind: type[BaseException] | None, *_: object) -> None:
        """Refuse to finish a file that lacks something."""
        if kind is None and self._missing:
            raise ValueError(f"{len(self._missing)} tensors were not written (first: {next(iter(self._missing))})")

    @torch.no_grad()
    def write(self, name: str, values: Tensor) -> None:
        """Write one tensor, converted to its type in the file.

        Raises:
            InputError: a number is too large for that type.
            KeyError: the file has no such tensor.
            ValueError: the shape differs, the tensor was written before, or fractions would become integers.
        """
        kind, shape = self._entries[name]
        target = TORCH_TYPES[kind]
        if tuple(values.shape) != tuple(shape):
            raise ValueError(f"{name} has shape {tuple(values.shape)}, announced was {tuple(shape)}")
        if name not in self._missing:
            raise ValueError(f"{name} was written before")
        if values.is_floating_point() and not target.is_floating_point:
            raise ValueError(f"{name} is {FILE_TYPES[values.dtype]}, announced was {kind}")
        place = self._starts[name]
        for chunk in values.reshape(-1).split(_CHUNK_BYTES // target.itemsize):
            converted = chunk.to("cpu", target)
            if converted.dtype != chunk.dtype and converted.isinf().any() and not chunk.isinf().any():
                raise InputError(f"{self._path} can't keep {name} as {kind}, its values are too large; choose another.")
            write_at(self._handle, _bytes(converted), place)
            place += converted.nbytes
        del self._missing[name]


class WeightsStore:
    """The tensors of a safetensors file, read when asked for; opening it reads the header alone.

    Raises:
        InputError: the file is missing, damaged, pickled, or holds types that torch does not have (also from `read`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)  # which also sees that the file is whole
        strange = sorted(set(self.header.types.values()) - set(TORCH_TYPES))
        if strange:
            raise InputError(f"{path} holds values of type {', '.join(strange)}; give weights in float32 or bfloat16.")
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._handle)
        size = bytearray(8)
        self._read(memoryview(size), 0)
        text = bytearray(int.from_bytes(size, "little"))
        self._read(memoryview(text), 8)
        parts = json.loads(text)
        self._starts = {name: 8 + len(text) + parts[name]["data_offsets"][0] for name in self.header.shapes}
        self.names = tuple(
            name for name in self.header.shapes if not (name.endswith(SCALE) and self._scaled(name[: -len(SCALE)]))
        )

    def shape(self, name: str) -> tuple[int, ...]:
        return self.header.shapes[name]

    def dtype(self, name: str) -> str:
        """The type in the file, as safetensors names it; `TORCH_TYPES` has torch's."""
        return self.header.types[name]

    @torch.no_grad()
    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """One tensor.

        Args:
            name: of the tensor.
            out: contiguous, of the tensor's shape; it is filled, its type kept, with no second copy on the way. 8-bit
                weights become floating-point numbers by their scales, and stay the integers they are in an int8 `out`.

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
        scales, row = None, 1
        if out.is_floating_point() and self._scaled(name):
            scales, row = self.read(name + SCALE), math.prod(shape[1:])
        buffer = torch.empty(row * max(1, _CHUNK_BYTES // kind.itemsize // max(1, row)), dtype=kind)
        for part in flat.split(len(buffer)) if len(flat) else ():
            chunk = buffer[: len(part)]
            self._read(_bytes(chunk), start)
            start += chunk.nbytes
            if scales is None:
                part.copy_(chunk)
            else:
                rows = len(chunk) // row
                part.view(rows, row).copy_(chunk.view(rows, row) * scales[:rows, None])
                scales = scales[rows:]
        return out

    def _scaled(self, name: str) -> bool:
        """Whether a tensor is kept in 8 bits with a scale for each row."""
        shapes = self.header.shapes
        return self.header.types.get(name) == "I8" and shapes.get(name + SCALE) == shapes[name][:1]

    def _read(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` from the file."""
        try:
            count = read_at(self._handle, buffer, start)
        except OSError as error:
            raise InputError(f"{self.path} can't be read ({error.strerror}); fetch or copy it anew.") from None
        if count < len(buffer):
            raise InputError(f"{self.path} became shorter while it was in use; fetch or copy it anew.")

    def close(self) -> None:
        """Give the file back; so does the last reference to the store."""
        self._close()

    def __enter__(self) -> WeightsStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous one-dimensional tensor on the CPU."""
    return values.view(torch.uint8).numpy().data
