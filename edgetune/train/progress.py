"""How far a run has come: everything the loop must remember over a power cut, and nothing else."""

from __future__ import annotations

import msgspec

from edgetune.train.engine import StepReport
from edgetune.train.meters import total


class Pace(msgspec.Struct):
    """What things take, in seconds, as they last did: a resumed run's caps go by it until it knows better."""

    step_s: float = 0.0  # 0: there was none yet
    image_s: float = 0.0  # preparing an image, for a cache
    evaluation_s: float | None = None
    evaluated_image_s: float | None = None  # from a sample, where there was no evaluation yet
    write_bytes_per_s: float | None = None  # of the run's files, the slowest
    weights_s: float | None = None  # writing the whole model; the longest
    state_s: float | None = None  # writing a state that has an optimizer's part; the longest


class Progress(msgspec.Struct, kw_only=True):
    """Counters of a run, over all its sittings. Written into every state; `step` optimizer steps are done."""

    step: int = 0
    epoch: int = 0  # the epoch in progress
    step_in_epoch: int = 0
    micro_batch_size: int = 0
    rung: int = 0  # of the governor's ladder; 0 is as planned
    eased: bool = False  # whether images are prepared in smaller groups than planned
    # the epoch in progress
    epoch_s: float = 0.0
    epoch_j: float | None = 0.0
    epoch_images: int = 0
    epoch_steps: int = 0
    loss_sum: float = 0.0
    closed_step: int = 0  # the step at which an epoch was last closed: nothing since then is in `epochs_s`
    evaluated_step: int = -1  # the step at which the model was last evaluated
    # the whole run
    epochs_s: list[float] = []
    epochs_j: list[float | None] = []
    evaluations: list[tuple[int, float]] = []  # epoch and validation accuracy
    best_classes: dict[str, float | None] = {}
    eval_s: float = 0.0
    save_s: float = 0.0
    spent_s: float = 0.0  # by the sittings before this one
    spent_j: float | None = 0.0  # None: some of it can't be known
    spent_net_j: float | None = 0.0
    spent_estimated_j: float = 0.0  # holes filled: what a cap counts
    energy_sources: list[tuple[str, str, bool]] = []  # of earlier sittings: name, scope, whether it measures
    peak_bytes: int = 0
    device_peak_bytes: int | None = None  # None: there is no accelerator
    images: int = 0
    train_flops: int = 0
    trained_block_steps: int = 0
    kept_sum: list[float] = []
    bytes_written: int = 0  # cached features left out
    cache_bytes: int = 0
    pace: Pace = msgspec.field(default_factory=Pace)

    def count(self, number: int, images: int, report: StepReport, seconds: float, joules: float | None) -> None:
        """Batch `number` of the epoch was trained on; unknown joules make those of the epoch unknown."""
        self.step += 1
        self.step_in_epoch = number + 1
        self.epoch_s += seconds
        self.epoch_images += images
        self.epoch_steps += 1
        self.epoch_j = total(self.epoch_j, joules)
        self.loss_sum += report.loss
        self.images += images
        self.train_flops += report.flops
        self.trained_block_steps += len(report.trained)
        self.kept_sum = [so_far + kept for so_far, kept in zip(self.kept_sum, report.kept, strict=True)]

    @property
    def cut_short(self) -> bool:
        """Whether the epoch in progress was closed before its end, by a cap; it goes on if the run does."""
        return self.step_in_epoch > 0 and self.closed_step == self.step

    @property
    def best(self) -> tuple[int, float] | None:
        """Epoch (from 0) and accuracy of the best evaluation; the earliest of equals."""
        return max(self.evaluations, key=lambda evaluation: (evaluation[1], -evaluation[0]), default=None)

    @property
    def last(self) -> tuple[int, float] | None:
        """Epoch and accuracy of the last evaluation."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def evaluations_without_gain(self) -> int:
        """Evaluations since the best one."""
        return 0 if self.best is None else len(self.evaluations) - 1 - self.evaluations.index(self.best)
