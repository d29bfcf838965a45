"""The result: how a run ended, predicted beside measured."""

from __future__ import annotations

from typing import Literal

from edgetune.schema.base import Record

StoppedBy = Literal["epochs", "patience", "memory", "energy", "time", "user", "nan"]


class Accuracy(Record, frozen=True):
    """Top-1 on the validation images, 0 to 1."""

    best: float | None
    last: float | None
    best_epoch: int | None
    classes: dict[str, float | None]  # per class, of the best checkpoint


class MemoryResult(Record, frozen=True):
    """Predicted beside measured."""

    cap_bytes: int | None
    baseline_bytes: int | None
    predicted_peak_bytes: int
    measured_peak_bytes: int | None
    device_peak_bytes: int | None


class TimeResult(Record, frozen=True):
    """Wall time. `total_s` is process start to exit, over all sessions of a resumed run."""

    total_s: float
    epochs_s: list[float]
    eval_s: float
    save_s: float


class EnergyResult(Record, frozen=True):
    """Joules. `net_j` is above the idle power measured before the run."""

    cap_j: float | None = None
    total_j: float | None = None
    net_j: float | None = None
    epochs_j: list[float | None] = []
    source: str | None = None
    scope: str | None = None
    measured: bool = False
    model: str | None = None  # the published model's name, where joules are not measured


class Work(Record, frozen=True):
    """What was done."""

    images: int
    train_flops: int
    trained_block_steps: int  # blocks that trained, summed over steps
    mean_keep: list[float]  # per block: share of the image's patch tokens that left it, mean over steps
    bytes_written: int


class Result(Record, frozen=True, tag_field="schema", tag="edgetune/result/1"):
    """How a run ended; written by `edgetune fit`."""

    stopped_by: StoppedBy
    accuracy: Accuracy
    memory: MemoryResult
    time: TimeResult
    energy: EnergyResult
    work: Work
    throttled: bool | None
    warnings: list[str]
    edgetune_version: str
    created: str
