"""What the frozen part of a network computes for each image, kept in one file on disk. Never imports torch.

The file is a header of fixed size and one record of fixed size for each image (and augmented view): a checksum, then
the tokens in 16 bits, or in 8 bits with a scale for each token. So its size is known before it is made, a record is one
read away, and a record that is torn, altered, in another's place or left from another file is never taken for features:
the checksum covers the file's key and the record's number too.

A file in the making is called `.partial`. It is its own journal: records are written in order, and those whose checksum
holds are complete, which is all a killed run needs to go on. (A count kept beside them would cost flash memory a write
per batch, and could be ahead of the data after a power cut.)
"""

from __future__ import annotations

import fcntl
import json
import os
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetune.data.sizes import FEATURE_HEADER_BYTES
from edgetune.data.sizes import feature_bytes as feature_bytes
from edgetune.errors import InputError, StorageError
from edgetune.files import put_in_place, read_at, storage_errors, write_at
from edgetune.units import format_size

Precision = Literal["fp16", "int8"]
HEADER_BYTES = FEATURE_HEADER_BYTES
_MAGIC = "edgetune features 1"
_CHECK = np.dtype("<u4")
_LARGEST_FP16 = 65504.0
_TINIEST = np.finfo(np.float32).tiny  # scale of a token of zeros


def partial_path(path: Path) -> Path:
    """Where a file lies while it is in the making."""
    return path.with_name(f"{path.name}.partial")


class _Records:
    """What can be read of a file: its first `complete` records. Only one thread may read at a time."""

    path: Path
    shape: tuple[int, int]  # tokens and width of a record
    precision: Precision
    complete: int  # records, from the first on
    _lies_at: Path
    _handle: int
    _seed: int
    _record: NDArray[np.void]

    def read(
        self, indices: Sequence[int] | NDArray[np.int64], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """The features of the records `indices`, in that order.

        Args:
            indices: their numbers.
            out: an array (at least n, tokens, width) to fill instead of a new one.

        Returns:
            An array (n, tokens, width).

        Raises:
            IndexError: there is no such record.
            InputError: a record is damaged.
        """
        features = np.empty((len(indices), *self.shape), np.float32) if out is None else out[: len(indices)]
        for index, values in zip(indices, features, strict=True):
            if not 0 <= index < self.complete:
                raise IndexError(f"{self.path} has {self.complete} records, none is number {index}")
            try:
                whole = _read(self._handle, self._record, int(index), self._seed)
            except OSError as error:
                raise InputError(
                    f"{self._lies_at} can't be read ({error.strerror}); delete it and start again."
                ) from None
            if not whole:
                raise InputError(f"{self._lies_at} is damaged at record {index}; delete it and start again.")
            _decode(self._record[0], values, self.precision)
        return features


class FeatureWriter(_Records):
    """A file of features in the making, which goes on where a killed run of the same key left it.

    Args:
        path: the file; it is there once `finish` has returned.
        count: records.
        shape: tokens and width of a record.
        precision: `fp16` (values beyond ±65504 become that) or `int8` (one scale for each token).
        key: digest of all that decides what the features are.

    Raises:
        InputError: another process is writing the same file.
        StorageError: the disk is full or the folder can't be written to (also from `put` and `finish`).
    """

    def __init__(self, path: Path, *, count: int, shape: tuple[int, int], precision: Precision, key: str) -> None:
        self.path, self.count, self.shape, self.precision = path, count, shape, precision
        self.partial_path = partial_path(path)
        self._lies_at = self.partial_path
        self.complete = 0  # records, from the first on; the next `put` starts here
        self.bytes_written = 0  # by this process
        self._type = _record(shape, precision)
        self._seed = zlib.crc32(key.encode())
        self._record = np.zeros(1, self._type)
        header = _header(count, shape, precision, key)
        with storage_errors(self.partial_path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.partial_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._close = weakref.finalize(self, os.close, self._handle)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.partial_path} is being written by another run; wait for it to end.") from None
            except OSError:
                pass  # a file system without locks
            found = bytearray(HEADER_BYTES)
            if read_at(self._handle, memoryview(found), 0) == HEADER_BYTES and bytes(found) == header:
                while self.complete < count and _read(self._handle, self._record, self.complete, self._seed):
                    self.complete += 1
            else:
                os.ftruncate(self._handle, 0)
                self._write(memoryview(header), 0)
            os.ftruncate(self._handle, self._place(self.complete))
            disk = os.fstatvfs(self._handle)
            free_bytes = disk.f_bavail * disk.f_frsize
            missing_bytes = self._place(count) - self._place(self.complete)
            if free_bytes < missing_bytes:  # better known now than after hours
                self.close() if self.complete else self.discard()
                raise StorageError(
                    f"{path} could not be written, {format_size(missing_bytes)} are needed and"
                    f" {format_size(free_bytes)} free: free some space or choose another folder."
                )

    def put(self, start: int, features: NDArray[np.float32]) -> None:
        """Append the features (n, tokens, width) of records `start`, `start + 1`, …; `start` must be `complete`.

        Raises:
            InputError: the features are not numbers.
            ValueError: they are not the next records, or not of this file's shape.
        """
        if start != self.complete or start + len(features) > self.count or features.shape[1:] != self.shape:
            raise ValueError(
                f"record {self.complete} of {self.count} is next, of shape {self.shape}; given were"
                f" {features.shape} from {start} on"
            )
        for values in features:
            if not np.isfinite(values).all():
                raise InputError(
                    f"what the network makes of image {self.complete} is no number, so {self.path} can't keep it;"
                    " give other weights."
                )
            _encode(values, self._record[0], self.precision)
            self._record["check"] = _checksum(self._record, self.complete, self._seed)
            with storage_errors(self.partial_path):
                self._write(self._record.view(np.uint8).data, self._place(self.complete))
            self.complete += 1

    def finish(self) -> None:
        """Put the file in its place, on the disk whatever happens next.

        Raises:
            ValueError: records are missing.
        """
        if self.complete < self.count:
            raise ValueError(f"{self.count - self.complete} of {self.count} records are missing")
        with storage_errors(self.path):
            put_in_place(self.partial_path, self.path)
        self.close()

    def discard(self) -> None:
        """Give the disk back what was written so far."""
        self.partial_path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the file; unless finished, it stays for another writer to go on with."""
        self._close()

    def _place(self, index: int) -> int:
        return HEADER_BYTES + index * self._type.itemsize

    def _write(self, content: memoryview, start: int) -> None:
        write_at(self._handle, content, start)
        self.bytes_written += len(content)

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class FeatureFile(_Records):
    """A finished file of features; `open` makes one."""

    def __init__(self, path: Path, handle: int, fields: dict[str, Any]) -> None:
        self.path = self._lies_at = path
        self.count = self.complete = int(fields["count"])
        self.shape = (fields["shape"][0], fields["shape"][1])
        self.precision = fields["precision"]
        self._seed = zlib.crc32(fields["key"].encode())
        self._record = np.zeros(1, _record(self.shape, self.precision))
        self._handle = handle
        self._close = weakref.finalize(self, os.close, handle)

    @classmethod
    def open(cls, path: Path, key: str) -> FeatureFile | None:
        """The file at `path`, or None where there is none, or none of this key, or no whole one: make it anew.

        Raises:
            InputError: there is a file that can't be read.
        """
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{path} can't be read ({error.strerror}); check its permissions or delete it.") from None
        keep = False
        try:
            content = bytearray(HEADER_BYTES)
            read_at(handle, memoryview(content), 0)
            fields = _parse(bytes(content))
            if fields is None or fields["key"] != key:
                return None
            size = feature_bytes(fields["count"], (fields["shape"][0], fields["shape"][1]), fields["precision"])
            if os.fstat(handle).st_size != size:
                return None
            keep = True
            return cls(path, handle, fields)
        except OSError as error:
            raise InputError(f"{path} can't be read ({error.strerror}); delete it.") from None
        finally:
            if not keep:
                os.close(handle)

    def close(self) -> None:
        """Let go of the file; so does the last reference to it."""
        self._close()

    def __enter__(self) -> FeatureFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _record(shape: tuple[int, int], precision: Precision) -> np.dtype[np.void]:
    """How a record lies in the file, without gaps."""
    if precision == "fp16":
        return np.dtype([("check", _CHECK), ("values", "<f2", shape)])
    return np.dtype([("check", _CHECK), ("scales", "<f4", shape[:1]), ("values", "i1", shape)])


def _encode(values: NDArray[np.float32], record: np.void, precision: Precision) -> None:
    """Put finite values (tokens, width) into a record."""
    if precision == "fp16":
        record["values"] = np.clip(values, -_LARGEST_FP16, _LARGEST_FP16)
        return
    scales = np.maximum(np.abs(values).max(1, initial=0) / np.float32(127), _TINIEST)
    record["scales"] = scales
    record["values"] = np.rint(values / scales[:, None])


def _decode(record: np.void, out: NDArray[np.float32], precision: Precision) -> None:
    """The values (tokens, width) of a record."""
    if precision == "fp16":
        out[...] = record["values"]
    else:
        np.multiply(record["values"], record["scales"][:, None], out=out)


def _checksum(record: NDArray[np.void], index: int, seed: int) -> int:
    """Of a record and its number in the file of a key."""
    content = record.view(np.uint8).data[_CHECK.itemsize :]
    return zlib.crc32(content, zlib.crc32(index.to_bytes(8, "little"), seed))


def _read(handle: int, record: NDArray[np.void], index: int, seed: int) -> bool:
    """Read record `index`; False where it is not there, or not what was written there."""
    content = record.view(np.uint8).data
    count = read_at(handle, content, HEADER_BYTES + index * len(content))
    return count == len(content) and int(record["check"][0]) == _checksum(record, index, seed)


def _header(count: int, shape: tuple[int, int], precision: Precision, key: str) -> bytes:
    """The first bytes of a file."""
    fields = {"kind": _MAGIC, "count": count, "shape": list(shape), "precision": precision, "key": key}
    text = json.dumps(fields).encode()
    room = HEADER_BYTES - _CHECK.itemsize
    if len(text) > room:
        raise ValueError(f"a key of {len(key)} characters is too long for the header")
    text = text.ljust(room)
    return text + zlib.crc32(text).to_bytes(_CHECK.itemsize, "little")


def _parse(content: bytes) -> dict[str, Any] | None:
    """The fields of a header, or None where it is none or damaged."""
    text, check = content[: -_CHECK.itemsize], content[-_CHECK.itemsize :]
    if zlib.crc32(text) != int.from_bytes(check, "little"):
        return None
    fields: dict[str, Any] = json.loads(text)
    return fields if fields["kind"] == _MAGIC else None
