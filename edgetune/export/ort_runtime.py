"""Finding onnxruntime-training without importing torch, and saying what to do where it is not."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

from edgetune.errors import InputError

RELEASE = "1.19.2"  # the last there is; for Linux on x86_64 (and macOS, Windows), Python 3.9 to 3.12
_LAST_PYTHON = (3, 12)


class Runtime(NamedTuple):
    """The modules of onnxruntime-training; untyped, since it comes without types."""

    inference: Any  # `onnxruntime` itself
    artifacts: Any
    blocks: Any
    api: Any


def import_training() -> Runtime:
    """onnxruntime-training, where the `onnxruntime` of this environment is the one with training in it.

    Raises:
        InputError: it is not; the sentence says what can be done on this platform.
    """
    found = importlib.util.find_spec("onnxruntime")
    root = Path(found.origin).parent if found is not None and found.origin is not None else None
    if root is None or not (root / "training" / "onnxblock").is_dir():
        raise InputError(_missing(platform.system(), platform.machine(), sys.version_info[:2]))
    if "onnxruntime.training" not in sys.modules:
        # Importing that package as it is brings torch, for `ORTModule` alone; what is needed here does without.
        package = types.ModuleType("onnxruntime.training")
        package.__path__ = [str(root / "training")]
        sys.modules["onnxruntime.training"] = package
        sys.modules.setdefault("onnxruntime.training.ortmodule", None)  # type: ignore[arg-type]
    try:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        parts = (importlib.import_module(f"onnxruntime.training.{name}") for name in ("artifacts", "onnxblock", "api"))
        return Runtime(onnxruntime, *parts)
    except ImportError as error:
        if error.name is not None and not error.name.startswith("onnxruntime"):
            raise InputError(
                f"--format ort-training needs {error.name}, which is not installed: run `pip install {error.name}`."
            ) from None
        raise InputError(
            f"--format ort-training can't load onnxruntime-training ({error}): where `onnxruntime` is installed beside"
            " it, one has overwritten the other; make a new environment with onnxruntime-training-cpu alone, or train"
            " with --engine onnx."
        ) from None


def _missing(system: str, machine: str, python: tuple[int, ...]) -> str:
    """Why onnxruntime-training is not here and what to do, in one sentence."""
    instead = "train without it by `edgetune fit --engine onnx`"
    if system == "Linux" and machine != "x86_64":
        return f"--format ort-training needs onnxruntime-training, which has no wheel for {machine} Linux: {instead}."
    if python > _LAST_PYTHON:
        return (
            f"--format ort-training needs onnxruntime-training, which has no wheel for Python"
            f" {python[0]}.{python[1]}: use Python {_LAST_PYTHON[0]}.{_LAST_PYTHON[1]} or older for it, or {instead}."
        )
    return (
        "--format ort-training needs onnxruntime-training, which is not in this environment and can't share one with"
        " onnxruntime: run it in a new one made with `pip install edgetune onnx pillow onnxruntime-training-cpu"
        f"=={RELEASE}`, or {instead}."
    )
