"""Handing a trained model on: to ONNX runtimes, to onnxruntime-training, and to timm.

`export` is the whole interface; each format has a module of its own, imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetune.errors import InputError, MissingDependencyError
from edgetune.model.checkpoint import find_source
from edgetune.schema import ExportReport

FORMATS = ("onnx", "onnx-int8", "timm", "train-onnx", "ort-training")


def export(
    run: Path | str,
    format: str,
    out: Path | str,
    *,
    weights: Path | None = None,
    images: Sequence[Path | str] | None = None,
) -> ExportReport:
    """Write the best checkpoint of a run, or a model that was not fine-tuned here, in another format.

    Args:
        run: a run folder, a weights file that edgetune wrote, or a model's name; for train-onnx a run folder or a
            plan file.
        format: one of `FORMATS`.
        out: the file (ONNX) or folder (the others) to write.
        weights: those of a model given by name; by default the bundled or the hub's.
        images: files to compare the exported model with torch on; by default validation images of the run.

    Raises:
        InputError: the run has no checkpoint or the model no classifier; the format is unknown; `out` can't be used.
        MissingDependencyError: the format needs a package that is not installed.
    """
    if format not in FORMATS:
        raise InputError(f"--format {format} is unknown; use {', '.join(FORMATS)}.")
    out = Path(out)
    if format == "train-onnx":
        try:
            from edgetune.export.training import export_training
        except ModuleNotFoundError as error:
            raise MissingDependencyError(error.name or "onnx", "onnx", f"--format {format}") from None
        if weights is not None:
            raise InputError("--weights is for a model given by name; training graphs begin with those of the plan.")
        return export_training(Path(run), out)
    checkpoint = find_source(run, weights)
    if format == "timm":
        try:
            from edgetune.export.timm import export_timm
        except ModuleNotFoundError as error:
            raise MissingDependencyError(error.name or "torch", "torch", f"--format {format}") from None
        return export_timm(checkpoint, out)
    paths = [Path(image) for image in images] if images else None
    if format == "ort-training":
        from edgetune.export.ort_runtime import import_training

        runtime = import_training()

        from edgetune.export.ort_training import export_ort_training

        return export_ort_training(runtime, checkpoint, out, images=paths)
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; name the .onnx file to write.")
    try:
        from edgetune.export.onnx import export_onnx
    except ModuleNotFoundError as error:
        missing = (error.name or "onnxruntime").split(".")[0]
        extra = "torch" if missing in ("torch", "PIL") else "onnx"
        raise MissingDependencyError(missing, extra, f"--format {format}") from None
    return export_onnx(checkpoint, out, int8=format == "onnx-int8", images=paths)
