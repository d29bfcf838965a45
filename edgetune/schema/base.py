"""What every artifact is built from: the frozen record, the words they share, and reading and writing them as JSON."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from edgetune.errors import InputError
from edgetune.files import write_atomically

Engine = Literal["torch", "onnx"]
Device = Literal["cpu", "cuda"]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every record."""


Artifact = TypeVar("Artifact", bound=Record)


def now() -> str:
    """The time of day as artifacts record it: UTC, ISO 8601, seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def to_json(record: Record | dict[str, Any]) -> bytes:
    """Indented JSON with a trailing newline."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def save(record: Record | dict[str, Any], path: Path) -> None:
    """Write an artifact atomically."""
    write_atomically(path, to_json(record))


def load(path: Path, kind: type[Artifact]) -> Artifact:
    """Read an artifact.

    Raises:
        InputError: the file is missing, is not JSON, or is another kind or version of artifact.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); check the path.") from None
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise InputError(f"{path} is not a valid {kind.__name__.lower()}: {error}; write it anew.") from None
