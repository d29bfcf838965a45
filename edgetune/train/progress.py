"""How far a run has come: everything the loop must remember over a power cut, and nothing else."""

from __future__ import annotations

import msgspec


class Progress(msgspec.Struct, kw_only=True):
    """Counters of a run, over all its sittings. Written into every state; `step` optimizer steps are done."""

    step: int = 0
    epoch: int = 0  # the epoch in progress
    step_in_epoch: int = 0
    evaluated: int = 0  # epochs evaluated so far
    micro_batch_size: int = 0
    # the epoch in progress
    epoch_s: float = 0.0
    epoch_j: float | None = 0.0
    loss_sum: float = 0.0
    # the whole run
    epochs_s: list[float] = []
    epochs_j: list[float | None] = []
    accuracies: list[float] = []
    best_classes: dict[str, float | None] = {}
    eval_s: float = 0.0
    save_s: float = 0.0
    spent_s: float = 0.0  # by the sittings before this one
    spent_j: float = 0.0
    spent_net_j: float = 0.0
    peak_bytes: int = 0
    images: int = 0
    train_flops: int = 0
    trained_block_steps: int = 0
    kept_sum: list[float] = []
    bytes_written: int = 0

    @property
    def best_epoch(self) -> int | None:
        """The epoch (from 0) of the best validation accuracy; the earliest of equals."""
        if not self.accuracies:
            return None
        return max(range(len(self.accuracies)), key=lambda epoch: (self.accuracies[epoch], -epoch))

    @property
    def epochs_without_gain(self) -> int:
        """Epochs evaluated since the best one."""
        best = self.best_epoch
        return 0 if best is None else len(self.accuracies) - 1 - best
