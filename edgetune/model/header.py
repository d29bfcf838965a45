"""What a weights file says before any weight is read: names, shapes, and who the classes are. Never imports torch.

Weights live in safetensors files (a JSON header, then raw tensors), because opening one can't run code; a pickled
checkpoint can, so it is refused. edgetune's own files keep the model's name, its image size, the class names and the
normalisation in the header's metadata, so that one file is all it takes to use a model.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from safetensors import SafetensorError, safe_open

from edgetune.errors import InputError
from edgetune.model.spec import ViTSpec

FLOATS = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}  # bytes of one weight, by safetensors' name of the type
_PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth", ".tar"})
_CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "s = torch.load(open(sys.argv[1], 'rb'), map_location='cpu', weights_only=True); "
    "s = s.get('state_dict', s.get('model', s)); "
    "save_file({k: v.clone().contiguous() for k, v in s.items() if torch.is_tensor(v)}, sys.argv[2])"
)
_TRIPLE = tuple[float, float, float]


class WeightsMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What the header of a weights file says about it; None where it says nothing."""

    model: str | None = None
    image_size: int | None = None
    classes: list[str] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    extra: dict[str, str] = {}

    @classmethod
    def of(cls, spec: ViTSpec, classes: list[str] | None, **extra: str) -> WeightsMetadata:
        """The metadata of a model that was built from `spec` and knows `classes`."""
        return cls(
            model=spec.name, image_size=spec.image_size, classes=classes, mean=spec.mean, std=spec.std, extra=extra
        )

    def strings(self) -> dict[str, str]:
        """As the header keeps it: text by name, everything that is not text as JSON."""
        known = {name: getattr(self, name) for name in ("model", "image_size", "classes", "mean", "std")}
        return self.extra | {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in known.items()
            if value is not None
        }

    @classmethod
    def parse(cls, strings: Mapping[str, str]) -> WeightsMetadata:
        """Read a header's strings. What does not have the type it should have (another tool wrote it) is kept aside."""
        known: dict[str, Any] = {}
        extra = {}
        types: dict[str, Any] = {"image_size": int, "classes": list[str], "mean": _TRIPLE, "std": _TRIPLE}
        for name, text in strings.items():
            if name == "model":
                known[name] = text
            elif name in types:
                try:
                    known[name] = msgspec.json.decode(text, type=types[name])
                except (msgspec.DecodeError, msgspec.ValidationError):
                    extra[name] = text
            else:
                extra[name] = text
        return cls(**known, extra=extra)


class Header(NamedTuple):
    """Names, shapes and types of a file's tensors, and its metadata."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file; no weight is read.

    Raises:
        InputError: the file is missing, a folder, damaged, or a pickled checkpoint.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the .safetensors file in it.")
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 — not a mapping
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            types = {name: str(part.get_dtype()) for name, part in slices.items()}
            return Header(path, shapes, types, dict(file.metadata() or {}))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path of the weights file.") from None
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror or error}); check its permissions.") from None
    except (SafetensorError, ValueError) as error:
        if _is_pickle(path):
            new = f"{path.stem}.converted.safetensors"
            line = f'python -c "{_CONVERT}" {shlex.quote(str(path))} {shlex.quote(new)}'
            raise InputError(
                f"{path} is a pickled checkpoint, which could run code when opened, so edgetune won't open it:"
                f" if you trust it, convert it with `{line}` and give the new file."
            ) from None
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{path} is not a whole safetensors file ({reason}); fetch or copy it anew.") from None


def read_metadata(path: Path) -> WeightsMetadata:
    """The metadata of a weights file.

    Raises:
        InputError: as `read_header`.
    """
    return WeightsMetadata.parse(read_header(path).metadata)


def _is_pickle(path: Path) -> bool:
    """Whether a file that is not safetensors is a pickle, by its first bytes or its name."""
    with open(path, "rb") as file:
        start = file.read(4)
    zipped = start == b"PK\x03\x04"  # torch.save since 1.6
    bare = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return zipped or bare or path.suffix.lower() in _PICKLE_SUFFIXES
