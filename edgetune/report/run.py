"""A run folder as far as it got. Only the plan must be there; a run that was killed has no result yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edgetune import schema
from edgetune.errors import InputError
from edgetune.model.registry import find_spec
from edgetune.report.metrics import Metrics, finite, read_metrics

_Artifact = TypeVar("_Artifact", schema.Profile, schema.Result, schema.Mistakes)


@dataclass(frozen=True)
class Run:
    """What a run folder holds. `notes` names the files that were there but could not be read."""

    path: Path
    plan: schema.Plan
    profile: schema.Profile | None
    result: schema.Result | None
    mistakes: schema.Mistakes | None
    metrics: Metrics
    notes: list[str] = field(default_factory=list)

    @property
    def epochs_s(self) -> list[float]:
        """Seconds of each finished epoch."""
        recorded = [finite(row.get("epoch_s")) for row in self.metrics.epochs]
        return [seconds for seconds in recorded if seconds is not None] or (
            self.result.time.epochs_s if self.result else []
        )

    @property
    def whole_epochs(self) -> int:
        """How many of them were not cut short by a cap."""
        steps = self.steps
        return len(self.epochs_s) if steps is None else min(len(self.epochs_s), steps // self.plan.steps_per_epoch)

    @property
    def steps(self) -> int | None:
        """Optimizer steps that the epochs took together; None where no epoch has a record."""
        recorded = [finite(row.get("step")) for row in self.metrics.epochs]
        return next((int(step) for step in reversed(recorded) if step is not None), None)

    @property
    def epochs_j(self) -> list[float | None]:
        """Joules of each finished epoch; None where unknown."""
        if self.metrics.epochs:
            return [finite(row.get("energy_j")) for row in self.metrics.epochs]
        return list(self.result.energy.epochs_j) if self.result else []

    @property
    def best(self) -> tuple[int, float] | None:
        """The best epoch so far, counted from 1 as people do (the artifacts count from 0), and its accuracy."""
        if self.result and self.result.accuracy.best is not None and self.result.accuracy.best_epoch is not None:
            return self.result.accuracy.best_epoch + 1, self.result.accuracy.best
        scored = [(int(row["epoch"]) + 1, finite(row.get("val_accuracy"))) for row in self.metrics.epochs]
        known = [(epoch, accuracy) for epoch, accuracy in scored if accuracy is not None]
        return max(known, key=lambda pair: (pair[1], -pair[0])) if known else None

    @property
    def patches(self) -> int | None:
        """Patch tokens of one image; for a model this edgetune does not know, the most that any block may keep."""
        try:
            return find_spec(self.plan.model).at(self.plan.image_size).patches
        except InputError:
            return max((block.keep_max_tokens for block in self.plan.blocks), default=None)


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        InputError: the folder has no readable plan.json.
    """
    if not (path / "plan.json").is_file():
        raise InputError(f"{path} has no plan.json: give the folder that `edgetune fit --out` wrote.")
    plan = schema.load(path / "plan.json", schema.Plan)
    notes: list[str] = []
    return Run(
        path=path,
        plan=plan,
        profile=_optional(path / "profile.json", schema.Profile, notes),
        result=_optional(path / "result.json", schema.Result, notes),
        mistakes=_optional(path / "mistakes.json", schema.Mistakes, notes),
        metrics=read_metrics(path / "metrics.jsonl", len(plan.blocks)),
        notes=notes,
    )


def _optional(path: Path, kind: type[_Artifact], notes: list[str]) -> _Artifact | None:
    if not path.exists():
        return None
    try:
        return schema.load(path, kind)
    except InputError as error:
        notes.append(str(error))
        return None
