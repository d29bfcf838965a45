"""Handing a trained model on: to ONNX runtimes, and to timm.

`export` is the whole interface; each format has a module of its own, imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetune.errors import InputError, MissingDependencyError
from edgetune.model.checkpoint import find_checkpoint
from edgetune.schema import ExportReport

FORMATS = ("onnx", "onnx-int8", "timm", "train-onnx")
_PLANNED = ("ort-training",)


def export(
    run: Path | str, format: str, out: Path | str, *, images: Sequence[Path | str] | None = None
) -> ExportReport:
    """Write the best checkpoint of a run in another format.

    Args:
        run: a run folder, or a weights file that edgetune wrote; for train-onnx a run folder or a plan file.
        format: one of `FORMATS`.
        out: the file (ONNX) or folder (timm, train-onnx) to write.
        images: files to compare the exported model with torch on; by default validation images of the run.

    Raises:
        InputError: the run has no checkpoint, or the format is unknown, or `out` can't be used.
        MissingDependencyError: the format needs a package that is not installed.
    """
    if format in _PLANNED:
        raise InputError(f"--format {format} is not in this version of edgetune; use {', '.join(FORMATS)}.")
    if format not in FORMATS:
        raise InputError(f"--format {format} is unknown; use {', '.join(FORMATS)}.")
    out = Path(out)
    if format == "train-onnx":
        try:
            from edgetune.export.training import export_training
        except ModuleNotFoundError as error:
            raise MissingDependencyError(error.name or "onnx", "onnx", f"--format {format}") from None
        return export_training(Path(run), out)
    checkpoint = find_checkpoint(Path(run))
    if format == "timm":
        from edgetune.export.timm import export_timm

        return export_timm(checkpoint, out)
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; name the .onnx file to write.")
    try:
        from edgetune.export.onnx import export_onnx
    except ModuleNotFoundError as error:
        missing = (error.name or "onnxruntime").split(".")[0]
        extra = "torch" if missing in ("torch", "PIL") else "onnx"
        raise MissingDependencyError(missing, extra, f"--format {format}") from None
    paths = [Path(image) for image in images] if images else None
    return export_onnx(checkpoint, out, int8=format == "onnx-int8", images=paths)
