"""Stand-ins for what a benchmark records, and its command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from edgetune.bench.records import Bench, Entry, Figures, Machine, Run, Settings

HERE = Machine(
    processor="one", cores=2, memory_bytes=1 << 30, kernel="6", python="3.11", versions={}, edgetune_version="0"
)
SETTINGS = Settings(
    workload=None,
    model="vit_nano_patch8_64",
    weights=None,
    data="photos",
    image_size=32,
    batch_size=6,
    epochs=3,
    threads=1,
    seed=0,
    augment=True,
    flip=True,
    classes=3,
    train_images=100,
    val_images=10,
)


class Told(NamedTuple):
    out: Path
    printed: str
    bench: Bench


def command(photos: Path, out: Path, *more: str) -> list[str]:
    line = [sys.executable, "-m", "edgetune", "bench", "--data", str(photos), "--model", "vit_nano_patch8_64"]
    line += ["--image-size", "32", "--batch-size", "6", "--epochs", "2", "--threads", "1", "--out", str(out)]
    return [*line, *more]


def make_run(name: str, repetition: int = 0, error: str | None = None, **figures: Any) -> Run:
    """A run as the log would hold it; figures in round numbers."""
    known: dict[str, Any] = {"baseline_bytes": 100, "peak_bytes": 300, "epochs_s": [3.0, 1.0, 2.0], "eval_s": 1.0}
    known |= {"accuracy": 0.5, "train_losses": [1.0], "images": 300, "train_flops_per_image": 1e9}
    return Run(
        entry=Entry(name=name, method=name),
        repetition=repetition,
        place=0,
        seed=repetition,
        command=f"edgetune fit --method {name}",
        total_s=10.0,
        others_share=0.0,
        throttled=None,
        figures=None if error else Figures(**(known | figures)),
        error=error,
        machine=HERE,
        created="2026-01-01T00:00:00+00:00",
    )
