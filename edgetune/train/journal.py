"""What a run says: `metrics.jsonl`, which a power cut can't spoil, and the same for the person who watches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from edgetune.files import storage_errors, write_atomically
from edgetune.train.display import Display
from edgetune.train.engine import Evaluation, StepReport
from edgetune.train.meters import Meters
from edgetune.train.progress import Progress

_LOGGED_STEPS = 2000  # at most about this many step lines


class Metrics:
    """`metrics.jsonl`: one JSON object a line, flushed line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int, epoch: int) -> None:
        """Forget what was logged after `step`, and the end of `epoch`: a resumed run writes them again.

        Also drops a torn last line.
        """
        if not self.path.exists():
            return
        lines = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record["step"] <= step and not (record["kind"] == "epoch" and record["epoch"] >= epoch):
                lines.append(line)
        write_atomically(self.path, b"".join(lines))

    def amend(self, epoch: int, **values: Any) -> None:
        """Add to the record of an epoch's end what was found only later."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        for number, line in enumerate(lines):
            record = json.loads(line)
            if record["kind"] == "epoch" and record["epoch"] == epoch:
                lines[number] = json.dumps(record | values).encode() + b"\n"
        write_atomically(self.path, b"".join(lines))

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one record; a number that is not finite becomes null, as JSON has none."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        with storage_errors(self.path), self.path.open("a") as log:
            log.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")


class Journal(Metrics):
    """The log of a run, and its display.

    Args:
        path: of the log.
        meters: what is read at the moment of writing.
        display: what the person sees.
        total_steps: of the plan; of very many steps not each has a line.
    """

    def __init__(self, path: Path, meters: Meters, display: Display, total_steps: int) -> None:
        super().__init__(path)
        self._meters, self._display = meters, display
        self._every = max(1, total_steps // _LOGGED_STEPS)

    def event(self, step: int, event: str, message: str) -> None:
        """Something happened."""
        self.write("event", step, event=event, message=message)
        self._display.say(message)

    def step(
        self, progress: Progress, report: StepReport, images: int, seconds: float, rate: float, joules: float | None
    ) -> None:
        """A step was taken, on so many images in so many seconds; joules are the run's so far."""
        images_per_s, memory_bytes = images / seconds, self._meters.memory.current_bytes()
        self._display.step(
            epoch=progress.epoch,
            step=progress.step,
            loss=report.loss,
            images_per_s=images_per_s,
            memory_bytes=memory_bytes,
            joules=joules,
        )
        if progress.step % self._every:
            return
        self.write(
            "step",
            progress.step,
            epoch=progress.epoch,
            loss=report.loss,
            lr=rate,
            images_per_s=round(images_per_s, 3),
            memory_bytes=memory_bytes,
            power_w=self._meters.energy.watts,
            energy_j=joules,
            clock_s=round(self._meters.clock(), 4),
            k=len(report.trained),
            trained_blocks=list(report.trained),
            tokens_per_block=[round(kept, 2) for kept in report.kept],
            budgets=report.budgets,
        )

    def epoch(self, progress: Progress, evaluation: Evaluation | None) -> None:
        """An epoch ended, evaluated or not."""
        loss = progress.loss_sum / progress.epoch_steps
        accuracy = evaluation.accuracy if evaluation else None
        memory_bytes = self._meters.memory.peak_bytes()
        self.write(
            "epoch",
            progress.step,
            epoch=progress.epoch,
            train_loss=loss,
            val_loss=evaluation.loss if evaluation else None,
            val_accuracy=accuracy,
            images=progress.images,
            epoch_s=progress.epoch_s,
            energy_j=progress.epoch_j,
            memory_bytes=memory_bytes,
            images_per_s=round(progress.epoch_images / progress.epoch_s, 3),
        )
        self._display.epoch(
            epoch=progress.epoch,
            loss=loss,
            accuracy=accuracy,
            seconds=progress.epoch_s,
            joules=progress.epoch_j,
            memory_bytes=memory_bytes,
        )

    def late_evaluation(self, epoch: int, evaluation: Evaluation) -> None:
        """An epoch that had ended without an evaluation got one."""
        self.amend(epoch, val_loss=evaluation.loss, val_accuracy=evaluation.accuracy)

    def accuracy(self, progress: Progress, evaluation: Evaluation) -> None:
        """A point of the accuracy's course, and what training took until then."""
        joules = [progress.epoch_j, *progress.epochs_j]
        self.write(
            "accuracy",
            progress.step,
            val_accuracy=evaluation.accuracy,
            train_s=sum(progress.epochs_s) + progress.epoch_s,
            train_j=None if None in joules else sum(spent for spent in joules if spent is not None),
        )
