"""ONNX: float32, and with weights in 8 bits. No file is left behind that was not compared with torch."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from edgetune.__about__ import __version__
from edgetune.data.sizes import IN_WORDS
from edgetune.errors import InputError
from edgetune.export.check import Comparison, Images, compare, real_images
from edgetune.export.graph import INPUT, OUTPUT, build_graph
from edgetune.files import atomic_path
from edgetune.model.checkpoint import Checkpoint
from edgetune.schema import ExportReport, now

_LARGEST_DIFFERENCE = 1e-3  # of float32 logits, relative to the largest; what is correct stays far below
_LARGEST_INT8_DIFFERENCE = 0.5  # mean over logits, relative to their spread over the classes


def export_onnx(
    checkpoint: Checkpoint, out: Path, *, int8: bool = False, images: Sequence[Path] | None = None
) -> ExportReport:
    """Write `checkpoint` as an ONNX file and compare it with torch.

    Args:
        checkpoint: the trained model.
        out: the file.
        int8: keep the weights of the blocks' matrix products in 8 bits (dynamic quantisation of onnxruntime).
        images: what to compare on; by default validation images of the run.

    Raises:
        InputError: the 8-bit model answers too differently.
        AssertionError: the float32 graph is not the model, which is a defect.
    """
    model = checkpoint.load()
    sample = real_images(checkpoint, images)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    proto = build_graph(checkpoint.spec, weights, _metadata(checkpoint))
    onnx.checker.check_model(proto)

    def logits(values: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(values)).numpy()

    with atomic_path(out) as temporary:
        if int8:
            _quantise(proto, temporary)
        else:
            onnx.save_model(proto, temporary)
        del proto
        found = _compare(temporary, sample, logits)
        _refuse(found, checkpoint, sample, int8=int8)
    return ExportReport(
        format="onnx-int8" if int8 else "onnx",
        path=str(out),
        size_bytes=out.stat().st_size,
        images=len(sample.values),
        images_from=sample.source,
        max_abs_difference=found.max_abs_difference,
        same_answer=found.same_answer,
        edgetune_version=__version__,
        created=now(),
    )


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """What a program needs to feed the model and to name its answers."""
    spec = checkpoint.spec
    return {
        "model": spec.name,
        "classes": json.dumps(checkpoint.classes, ensure_ascii=False),
        "image_size": str(spec.image_size),
        "mean": json.dumps(spec.mean),
        "std": json.dumps(spec.std),
        "preprocessing": IN_WORDS,
        "output": "logits; softmax not included",
        "edgetune_version": __version__,
    }


def _quantise(proto: onnx.ModelProto, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().addFilter(_no_advice)  # it recommends a preparation that our graph has no need of
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            whole = Path(scratch) / "float.onnx"
            onnx.save_model(proto, whole)
            # One bit of range is given up, because x86 processors without VNNI saturate when they add 8-bit products
            quantize_dynamic(
                whole,
                path,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
            )
    finally:
        logging.getLogger().removeFilter(_no_advice)


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()


def _compare(path: Path, sample: Images, logits: Any) -> Comparison:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return compare(sample, logits, lambda values: session.run([OUTPUT], {INPUT: values})[0])


def _refuse(found: Comparison, checkpoint: Checkpoint, sample: Images, *, int8: bool) -> None:
    """Raise where the exported model is not good enough; the file is then never put in place."""
    if int8:
        if not found.relative_difference <= _LARGEST_INT8_DIFFERENCE:
            raise InputError(
                f"{checkpoint.path} does not bear 8-bit weights (its logits move by {found.relative_difference:.0%} of"
                f" their spread on {sample.source}); export it with --format onnx."
            )
    elif not found.max_abs_difference <= _LARGEST_DIFFERENCE * max(1.0, found.largest_logit):
        raise AssertionError(
            f"the ONNX graph of {checkpoint.spec.name} differs from torch by {found.max_abs_difference:.3g}"
        )
