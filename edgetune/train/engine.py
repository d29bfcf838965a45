"""What the loop asks of a training engine. The loop knows nothing of torch; an engine knows nothing of epochs.

`edgetune.train.torch_engine.TorchEngine` is autograd's, `edgetune.train.lean.engine.LeanEngine` the lean trainer's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from edgetune.data.folder import Sample
from edgetune.data.loader import Batch


class StepReport(NamedTuple):
    """What one optimizer step did.

    `kept` is the mean number of patch tokens that left each block; `budgets` is None where no method adapts them.
    """

    loss: float
    trained: tuple[int, ...]
    kept: list[float]
    budgets: list[float] | None
    flops: int


class Evaluation(NamedTuple):
    """Predictions on labelled images: mean loss; per image its place among the samples, label, answer, confidence."""

    loss: float
    indices: list[int]
    labels: list[int]
    predictions: list[int]
    confidences: list[float]

    @property
    def accuracy(self) -> float:
        """Top-1, 0 to 1."""
        return sum(map(int.__eq__, self.labels, self.predictions)) / max(1, len(self.labels))


class Source(Protocol):
    """Where batches come from: `edgetune.data.loader.Loader`, or cached features that stand for its images."""

    @property
    def samples(self) -> Sequence[Sample]:
        """The images and their labels."""

    @property
    def warnings(self) -> list[str]:
        """What went wrong with single images, in sentences."""

    def __len__(self) -> int:
        """Images."""

    def stretches(self, epoch: int, start_batch: int = 0, *, whole: bool = False) -> Iterator[range]:
        """The rest of an epoch in stretches of batches: `prepare` each before its batches are asked for.

        Args:
            epoch: its number, from 0.
            start_batch: the first.
            whole: in one stretch, since no cap may end the run before all of it is needed.
        """

    def prepare(
        self, epoch: int, stop_batch: int | None = None, micro_batch_size: int = 1
    ) -> Generator[int, None, None]:
        """Do what an epoch's batches before one need done, a group of images at a time, between which one may give up.

        Yields 0 before each group and how many images it had after it.

        Raises:
            OutOfMemoryError: see `edgetune.train.scarcity`; what was done stays done, and after `ease` less is needed.
        """

    def ease(self) -> bool:
        """Need less memory while preparing from now on; False where that is as little as it can be."""

    def epoch(self, epoch: int, start_batch: int = 0, stop_batch: int | None = None) -> Iterator[Batch]:
        """The batches of an epoch, from one of them on and up to another."""

    def bytes_on_disk(self) -> int:
        """What the source has written there, in whichever sitting of the run."""

    def close(self) -> None:
        """End workers, let go of files."""


class Engine(Protocol):
    """A model in training."""

    base_s: float | None  # what writing the base took, where that was before the engine was there

    def train_step(self, batch: Batch, learning_rate: float, micro_batch_size: int) -> StepReport:
        """One optimizer step on a batch, in exact accumulation over micro-batches.

        A loss that is not finite leaves weights and optimizer as they were and is returned.

        Raises:
            OutOfMemoryError: see `edgetune.train.scarcity`.
        """

    def limit(self, k: int, most_tokens: Sequence[int]) -> None:
        """Bound what trains from the next step on, inside what the plan allows; a later call may allow more again.

        Args:
            k: blocks that train per step.
            most_tokens: per block, the most patch tokens that may leave it.
        """

    def evaluate(self, batches: Iterable[Batch], micro_batch_size: int, stop: Callable[[], bool]) -> Evaluation | None:
        """Predictions with all tokens kept and nothing learned; None when `stop()` became true half-way.

        Raises:
            OutOfMemoryError: see `edgetune.train.scarcity`.
        """

    def ease(self) -> bool:
        """Need less memory while images are evaluated from now on; False where that is as little as it can be."""

    def rest(self) -> None:
        """Give back the memory that only steps need, until the next one."""

    def save_weights(self, path: Path, accuracy: float | None) -> int:
        """Write the model under timm's names with what is needed to use it; returns the bytes written."""

    def save_base(self, path: Path) -> int:
        """Write, once per run, what never trains; returns the bytes written."""

    def save_state(self, path: Path, progress: dict[str, Any]) -> int:
        """Write what trains, the optimizer's and the method's state and `progress`; returns the bytes written."""

    def load_state(self, base: Path, path: Path) -> dict[str, Any]:
        """Take up a state written before; returns its `progress`."""

    def device_room_bytes(self) -> int | None:
        """Memory that this process could still have on an accelerator with memory of its own; None without one."""

    def device_peak_bytes(self) -> int | None:
        """Most memory this process held on an accelerator, context excluded; None without one."""
