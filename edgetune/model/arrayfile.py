"""A safetensors file, read and written one array at a time, so that no process ever holds the whole model. No torch.

The safetensors library writes from memory all at once, and reads by mapping the file, whose pages then count as the
process's own until it is closed. Here a tensor goes to and from its place in the file by plain reads and writes,
through a small buffer where it changes its type. `edgetune.model.tensorfile` is the same for torch's tensors.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import InputError
from edgetune.files import atomic_path, read_at, write_at
from edgetune.model.header import read_header

# By safetensors' name. numpy has no bfloat16: its bits are read as integers and widened.
ARRAY_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
CHUNK_BYTES = 1 << 20  # of a tensor that changes its type on the way

_Writer = TypeVar("_Writer", bound="ArrayWriter")
_Store = TypeVar("_Store", bound="ArrayStore")


class ArrayWriter:
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
        self.path = path
        self._entries = dict(entries)
        self._missing = dict.fromkeys(entries)
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        # The widest types first: every tensor is then aligned for whoever maps the file.
        order = sorted(entries, key=lambda name: -ARRAY_TYPES[entries[name][0]].itemsize)
        starts, end = {}, 0
        for name in order:
            kind, shape = entries[name]
            starts[name], end = end, end + math.prod(shape) * ARRAY_TYPES[kind].itemsize
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [starts[name], end]}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._header = len(text).to_bytes(8, "little") + text
        self._starts = {name: len(self._header) + start for name, start in starts.items()}

    def __enter__(self: _Writer) -> _Writer:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
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

    def write_array(self, name: str, values: NDArray[Any]) -> None:
        """Write one array, converted to its type in the file; bfloat16 is for `edgetune.model.tensorfile`.

        Raises:
            InputError: a number is too large for that type.
            KeyError: the file has no such tensor.
            ValueError: the shape differs, the tensor was written before, or numpy can't make that type.
        """
        kind = self._announced(name, values.shape)
        target = ARRAY_TYPES[kind]
        if kind == "BF16" or (values.dtype.kind == "f" and target.kind != "f"):
            raise ValueError(f"{name} is {values.dtype}, announced was {kind}")
        flat, step = values.reshape(-1), CHUNK_BYTES // target.itemsize
        for start in range(0, len(flat), step):
            chunk = flat[start : start + step]
            with np.errstate(over="ignore"):  # said in a sentence below
                converted = np.ascontiguousarray(chunk, target)
            if converted.dtype != chunk.dtype and np.isinf(converted).any() and not np.isinf(chunk).any():
                raise self._too_large(name, kind)
            self._put(name, converted.view(np.uint8).data, start * target.itemsize)
        self._done(name)

    def copy(self, name: str, store: ArrayStore) -> None:
        """Write a tensor as another file has it, a piece at a time, in its type here, which holds all its numbers.

        Raises:
            InputError: the other file is damaged.
            KeyError: either file has no such tensor.
            ValueError: the shape differs, or the tensor was written before.
        """
        target, place = ARRAY_TYPES[self._announced(name, store.shape(name))], 0
        for piece in store.pieces(name):
            converted = np.ascontiguousarray(piece, target)
            self._put(name, converted.view(np.uint8).data, place)
            place += converted.nbytes
        self._done(name)

    def _announced(self, name: str, shape: tuple[int, ...]) -> str:
        """The type of a tensor about to be written."""
        kind, announced = self._entries[name]
        if tuple(shape) != tuple(announced):
            raise ValueError(f"{name} has shape {tuple(shape)}, announced was {tuple(announced)}")
        if name not in self._missing:
            raise ValueError(f"{name} was written before")
        return kind

    def _too_large(self, name: str, kind: str) -> InputError:
        return InputError(f"{self.path} can't keep {name} as {kind}, its values are too large; choose another.")

    def _put(self, name: str, content: memoryview, place: int) -> None:
        write_at(self._handle, content, self._starts[name] + place)

    def _done(self, name: str) -> None:
        del self._missing[name]


class ArrayStore:
    """The tensors of a safetensors file, read when asked for; opening it reads the header alone.

    Raises:
        InputError: the file is missing, damaged, pickled, or holds types of which nobody knows (also from `read`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)  # which also sees that the file is whole
        strange = sorted(set(self.header.types.values()) - set(ARRAY_TYPES))
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
        self.names = tuple(self.header.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.header.shapes[name]

    def dtype(self, name: str) -> str:
        """The type in the file, as safetensors names it."""
        return self.header.types[name]

    def read_array(self, name: str, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """One tensor as an array.

        Args:
            name: of the tensor.
            out: contiguous, of the tensor's shape; it is filled, with no second copy on the way. None: a new array, in
                float32 for floating-point numbers, else of the file's type.

        Returns:
            `out`, or the new array.
        """
        kind, shape = self.header.types[name], self.header.shapes[name]
        stored = ARRAY_TYPES[kind]
        if out is None:
            floating = kind == "BF16" or stored.kind == "f"
            out = np.empty(shape, np.float32 if floating else stored)
        if tuple(out.shape) != shape or not out.flags.c_contiguous:
            raise ValueError(f"{name} has shape {shape}, the place for it {tuple(out.shape)}, which must be contiguous")
        flat = out.reshape(-1)
        if out.dtype == stored and kind != "BF16":
            self._read(flat.view(np.uint8).data, self._starts[name])
            return out
        begin = 0
        for piece in self.pieces(name):
            flat[begin : begin + len(piece)] = piece
            begin += len(piece)
        return out

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        """The numbers of a tensor in order, a MiB of the file at a time; in float32 where that is bfloat16.

        What is handed out is written over by the next piece.
        """
        kind, left, start = self.header.types[name], math.prod(self.header.shapes[name]), self._starts[name]
        stored = ARRAY_TYPES[kind]
        buffer = np.empty(min(left, CHUNK_BYTES // stored.itemsize), stored)
        while left:
            piece = buffer[:left]
            self._read(piece.view(np.uint8).data, start)
            yield (piece.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else piece
            start, left = start + piece.nbytes, left - len(piece)

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

    def __enter__(self: _Store) -> _Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write arrays to one file, atomically, each in its own type.

    Raises:
        StorageError: the disk is full or the folder can't be written to; what stood at `path` before is untouched.
    """
    kinds = {kind: name for name, kind in ARRAY_TYPES.items() if name != "BF16"}
    entries = {name: (kinds[values.dtype], values.shape) for name, values in arrays.items()}
    with ArrayWriter(path, entries, metadata) as writer:
        for name, values in arrays.items():
            writer.write_array(name, values)


def copy_arrays(
    path: Path, store: ArrayStore, replaced: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]
) -> None:
    """Write a whole model in float32: `replaced` where it has an array, `store` for the rest.

    Args:
        path: the file.
        store: the weights that did not train.
        replaced: arrays by name. Each is asked for once and let go, so that a mapping may compute them as it is asked.
        metadata: goes to the header.

    Raises:
        KeyError: `replaced` has a name that the store lacks.
        StorageError: the disk is full or the folder can't be written to; what stood at `path` before is untouched.
    """
    strange = sorted(set(replaced) - set(store.names))
    if strange:
        raise KeyError(f"no such tensor: {strange[0]}")
    entries = {name: ("F32", store.shape(name)) for name in store.names}
    with ArrayWriter(path, entries, metadata) as writer:
        for name in store.names:
            if name in replaced:
                writer.write_array(name, replaced[name])
            else:
                writer.copy(name, store)
