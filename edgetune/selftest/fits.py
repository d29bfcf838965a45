"""A tiny fine-tuning run with each engine, in a process of its own: an illegal instruction ends that process only."""

from __future__ import annotations

import os
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import msgspec

from edgetune import schema
from edgetune.data.samples import unpack
from edgetune.errors import EdgetuneError
from edgetune.processes import module_command
from edgetune.schema import Engine, FitTry

# What an engine is made of; the last is our own part of it.
ENGINES: dict[Engine, tuple[str, ...]] = {
    "torch": ("PIL", "torch", "edgetune.train.torch_engine"),
    "onnx": ("PIL", "onnx", "onnxruntime", "edgetune.train.onnx"),
}
_LIMIT_S = 900.0  # a Pi Zero 2 W has one core's worth of a phone from 2012, and an emulated board less
_LAST_LETTERS = 400


def missing_part(engine: Engine) -> str | None:
    """The first part of an engine that is not installed, or None where all of it is."""
    for name in ENGINES[engine]:
        try:
            found = find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return name
    return None


def write_data(folder: Path) -> Path:
    """Three digits, eight training and four validation images of each or so."""
    return unpack("digits", folder, per_class=8, classes=3)


def try_fit(engine: Engine, data: Path, profile: Path, folder: Path) -> FitTry:
    """Run `edgetune fit` for one epoch on 24 small images.

    Args:
        engine: one that is installed.
        data: from `write_data`.
        profile: this machine's, for the prediction of memory.
        folder: an empty one for the run.
    """
    run = folder / engine
    words = ["fit", str(data), "--model", "vit_nano_patch8_64", "--image-size", "32", "--batch-size", "6"]
    words += ["--epochs", "1", "--workers", "0", "--engine", engine, "--profile", str(profile)]
    command = [*module_command("edgetune"), *words, "--out", str(run), "--quiet"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT_S, check=False
        )
        status, said = done.returncode, done.stderr.decode(errors="replace").strip()
    except subprocess.TimeoutExpired:
        status, said = -9, f"it did not end within {_LIMIT_S:.0f} s"
    tried = FitTry(
        engine=engine,
        exit_status=status,
        seconds=round(time.monotonic() - began, 2),
        said=said[-_LAST_LETTERS:] or None,
    )
    return _with_result(tried, run) if status == 0 else tried


def _with_result(tried: FitTry, run: Path) -> FitTry:
    """The figures of a run that ended well."""
    try:
        result = schema.load(run / "result.json", schema.Result)
        plan = schema.load(run / "plan.json", schema.Plan)
    except EdgetuneError as error:
        return msgspec.structs.replace(tried, said=str(error))
    return msgspec.structs.replace(
        tried,
        accuracy=result.accuracy.last,
        epoch_s=next(iter(result.time.epochs_s), None),
        total_j=result.energy.total_j,
        energy_measured=result.energy.measured,
        baseline_bytes=result.memory.baseline_bytes,
        predicted_peak_bytes=result.memory.predicted_peak_bytes,
        measured_peak_bytes=result.memory.measured_peak_bytes,
        device=plan.device,
    )
