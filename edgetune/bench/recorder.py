"""What a training process measures of itself: the meters of every peer, which are those of `edgetune fit`.

Used inside the peers' processes only; it imports no torch by itself, but what it is given does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from edgetune.bench.records import CurvePoint, Figures
from edgetune.device.board import identify_entry
from edgetune.device.energy import EnergyMeter
from edgetune.device.power import find_power
from edgetune.device.system import System
from edgetune.errors import DivergedError
from edgetune.measure import PeakMeter
from edgetune.schema import Plan


class Recorder:
    """Memory, epochs, joules and the course of the accuracy; `with Recorder(…) as recorder:` around all training.

    `evaluate` is to be set by whoever builds the model: the accuracy as it stands, 0 to 1, or None.

    Args:
        plan: what is trained, for rates and its settings of evaluation and power.
        warm_up: imports, thread pools, one matrix product: what the baseline holds.
        root: where sensors are read.
        children: whether the method starts processes of its own, whose memory then counts.
    """

    def __init__(self, plan: Plan, warm_up: Callable[[], object], *, root: Path | None, children: bool = False) -> None:
        self._plan = plan
        self._memory = PeakMeter.start(warm_up, children=children)
        system = System(root) if root is not None else System()
        board, entry = identify_entry(system)
        self._source = find_power(system, board, entry, plan.power_w)
        self._energy = EnergyMeter(self._source, warn=system.warn)
        self._system = system
        self._entered = ExitStack()
        self._epochs_s: list[float] = []
        self._epochs_j: list[float | None] = []
        self._spans_s: list[tuple[float, float]] = []
        self._losses: list[float] = []
        self._epoch_losses: list[float] = []
        self._curve: list[CurvePoint] = []
        self._images = self._steps = 0
        self._eval_s = 0.0
        self._accuracy: float | None = None
        self.evaluate: Callable[[], float | None] = lambda: None

    def __enter__(self) -> Recorder:
        self._entered.enter_context(self._energy)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.close()

    def begin_epoch(self) -> None:
        """Just before its first batch is asked for."""
        self._window = self._energy.window()
        self._window.__enter__()
        self._began_s, self._paused_s = time.monotonic(), 0.0
        self._paused_j: float | None = 0.0

    def note_step(self, loss: float, images: int) -> None:
        """After each optimizer step; evaluates where that is due.

        Raises:
            DivergedError: the loss is no number.
        """
        if not math.isfinite(loss):
            rate = self._plan.recipe.learning_rate
            raise DivergedError(f"--lr {rate:g} made the loss diverge; try a lower one.")
        self._losses.append(loss)
        self._images, self._steps = self._images + images, self._steps + 1
        every = self._plan.recipe.evaluate_steps
        if every and self._steps % every == 0:
            with self._paused():
                self._add_point()

    def end_epoch(self) -> None:
        """Just after its last update."""
        seconds, joules = self._spent()
        ended_s = time.monotonic()
        self._window.__exit__(None, None, None)
        self._epochs_s.append(seconds)
        self._epochs_j.append(joules)
        self._spans_s.append((self._began_s, ended_s))
        self._epoch_losses.append(sum(self._losses) / len(self._losses))
        self._losses.clear()

    def finish(self, warnings: Sequence[str] = ()) -> Figures:
        """Evaluate once more, and put everything together."""
        began_s = time.monotonic()
        self._accuracy = self.evaluate()
        self._eval_s += time.monotonic() - began_s
        self._memory.stop()
        source = self._source
        return Figures(
            baseline_bytes=self._memory.baseline_bytes,
            peak_bytes=self._memory.peak_bytes(),
            epochs_s=self._epochs_s,
            eval_s=self._eval_s,
            accuracy=self._accuracy,
            train_losses=self._epoch_losses,
            images=self._images,
            train_flops_per_image=self._plan.predicted.train_flops_per_image,
            warnings=(*self._memory.warnings, *self._system.warnings, *warnings),
            epochs_j=self._epochs_j,
            energy_source=source.name if source else None,
            energy_scope=source.scope if source else None,
            energy_measured=source.measured if source else None,
            curve=self._curve,
            epoch_spans_s=self._spans_s,
            augmented=self._plan.recipe.augment,
        )

    def _spent(self) -> tuple[float, float | None]:
        """Seconds and joules of the epoch in progress, evaluations left out."""
        joules = self._window.joules
        seconds = time.monotonic() - self._began_s - self._paused_s
        return seconds, None if joules is None or self._paused_j is None else joules - self._paused_j

    def _add_point(self) -> None:
        seconds, joules = self._spent()
        accuracy = self.evaluate()
        if accuracy is None:
            return
        before_j = [joules, *self._epochs_j]
        known_j = [spent for spent in before_j if spent is not None]
        self._curve.append(
            CurvePoint(
                step=self._steps,
                accuracy=accuracy,
                train_s=sum(self._epochs_s) + seconds,
                train_j=sum(known_j) if len(known_j) == len(before_j) else None,
            )
        )

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """What happens inside is no part of the epoch's seconds and joules."""
        began_s = time.monotonic()
        with self._energy.window() as window:
            yield
        seconds, joules = time.monotonic() - began_s, window.joules
        self._eval_s += seconds
        self._paused_s += seconds
        self._paused_j = None if joules is None or self._paused_j is None else self._paused_j + joules
