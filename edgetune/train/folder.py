"""The run folder: what lies where, and the log that a power cut can't spoil."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from edgetune.errors import InputError
from edgetune.files import storage_errors, write_atomically


class RunFolder:
    """Paths of a run's artifacts; docs/artifacts.md says what each holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "plan.json"
        self.profile = path / "profile.json"
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.base = path / "state" / "base.safetensors"
        self.state = path / "state" / "state.safetensors"
        self.graphs = path / "state" / "graphs"  # of an export, where the run was given one
        self.result = path / "result.json"
        self.mistakes = path / "mistakes.json"
        self.report = path / "report.html"

    def create(self) -> None:
        """Make the folder for a new run.

        Raises:
            InputError: it exists and is not empty, or can't be made.
        """
        left_before_training = {self.plan, self.profile, self.config}  # of a run that could not begin
        if self.path.exists() and (not self.path.is_dir() or set(self.path.iterdir()) - left_before_training):
            hint = "add --resume to go on with it, or " if self.state.exists() else ""
            raise InputError(f"--out {self.path} exists already; {hint}choose another folder.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {self.path} can't be made ({error.strerror}); choose another folder.") from None

    def discard(self) -> None:
        """Take back what a run wrote before it could train, so that the corrected command can use the same folder."""
        if self.state.exists():
            return
        self.delete_features()
        shutil.rmtree(self.graphs, ignore_errors=True)
        for file in (self.plan, self.profile, self.config, self.metrics, self.base):
            file.unlink(missing_ok=True)
        for folder in (self.base.parent, self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def delete_features(self) -> None:
        """Give back the disk that cached features took."""
        for file in self.base.parent.glob("features-*"):
            file.unlink(missing_ok=True)

    def open(self) -> None:
        """Check that there is a run to go on with.

        Raises:
            InputError: nothing here can be resumed.
        """
        if not (self.plan.exists() and self.state.exists() and self.base.exists()):
            raise InputError(f"--out {self.path} holds no run that can be resumed; leave out --resume to start one.")
        for unfinished in self.path.rglob(".*.new"):  # of a write that a power cut ended
            unfinished.unlink(missing_ok=True)


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

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one record; a number that is not finite becomes null, as JSON has none."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        with storage_errors(self.path), self.path.open("a") as log:
            log.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
