"""The loop: epochs, evaluation, checkpoints, caps. It knows no torch; an `Engine` does the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from edgetune import schema
from edgetune.data.loader import Batch
from edgetune.device.energy import Window
from edgetune.device.throttle import slowing
from edgetune.errors import InputError
from edgetune.model.registry import find_spec
from edgetune.plan.bill import FLOAT_BYTES, state_bytes
from edgetune.plan.job import job_of
from edgetune.schema import Plan, StoppedBy
from edgetune.train.budget import Budget
from edgetune.train.calibration import CALIBRATED_AFTER, calibrated
from edgetune.train.display import Display
from edgetune.train.engine import Engine, Evaluation, Source, StepReport
from edgetune.train.folder import RunFolder
from edgetune.train.governor import Governor, Squeeze
from edgetune.train.journal import Journal
from edgetune.train.meters import Meters, Timed, difference, total
from edgetune.train.mistakes import class_accuracies, find_mistakes
from edgetune.train.progress import Progress
from edgetune.train.sampling import evaluated_image_s
from edgetune.train.saving import written
from edgetune.train.scarcity import OutOfMemoryError, memory_errors
from edgetune.train.schedule import learning_rate
from edgetune.train.spending import Spending
from edgetune.train.turning import Turning


class Loop:
    """One run, or the rest of one.

    Args:
        plan: what to do.
        engine: does it.
        train, val: the images.
        folder: where the artifacts go.
        meters: memory, energy and time.
        display: what the person sees.
        interrupted: whether somebody asked the run to end.
        save_every_s: seconds between states within an epoch.
    """

    def __init__(
        self,
        plan: Plan,
        engine: Engine,
        train: Source,
        val: Source,
        folder: RunFolder,
        meters: Meters,
        display: Display,
        interrupted: Callable[[], bool],
        save_every_s: float,
    ) -> None:
        self.plan, self.engine, self.train, self.val = plan, engine, train, val
        self.folder, self.meters = folder, meters
        self.journal = Journal(folder.metrics, meters, display, plan.total_steps)
        self.interrupted, self.save_every_s = interrupted, save_every_s
        self.progress = Progress(micro_batch_size=plan.micro_batch_size, kept_sum=[0.0] * len(plan.blocks))
        self.governor = Governor(plan.caps, meters.memory, meters.pressure, meters.clock)
        self.knobs = Turning(plan, engine, self.governor, self.progress, self._event)
        self._throttle = meters.throttle()
        spec = find_spec(plan.model).at(plan.image_size, len(plan.data.classes))
        weights, state = FLOAT_BYTES * spec.parameter_count, state_bytes(job_of(plan))
        self.spending = Spending(meters, self.progress)
        self.budget = Budget(plan, self.governor, len(val), weights, state, lambda: self.spending.so_far())
        self.progress.pace = self.budget.pace
        self._saved_at = meters.clock()
        self._step_s = 0.0

    # --- state -------------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Take up the last state, and forget what was logged after it."""
        kept = self.engine.load_state(self.folder.base, self.folder.state)
        try:
            self.progress = msgspec.convert(kept, Progress)
        except msgspec.ValidationError as error:
            raise InputError(f"{self.folder.state} is of another version ({error}); start anew.") from None
        progress = self.progress
        self.spending = Spending(self.meters, progress)
        self.journal.rewind(progress.step, progress.epoch + progress.cut_short)
        self.budget.resume(progress.pace)
        self.knobs.resume(progress, (self.train, self.val))
        self._event("resumed", f"resumed after step {self.progress.step}")

    def save(self) -> None:
        """Write a state from which `resume` continues."""
        with self._timed("save_s"):
            self.progress.peak_bytes = max(self.progress.peak_bytes, self.meters.memory.peak_bytes() or 0)
            device_bytes = self.engine.device_peak_bytes()
            if device_bytes is not None:
                self.progress.device_peak_bytes = max(self.progress.device_peak_bytes or 0, device_bytes)
            self.progress.cache_bytes = self.train.bytes_on_disk() + self.val.bytes_on_disk()
            kept = msgspec.to_builtins(self.spending.noted())
            self.budget.note_state(self._write(self.folder.state, lambda path: self.engine.save_state(path, kept)))
        self._saved_at = self.meters.clock()

    def hold_to_charge(self, most_j: float) -> bool:
        """Let this sitting take no more from a battery; whether that is less than the caps allow anyway."""
        most_j += self.progress.spent_estimated_j
        cap_j = self.governor.caps.energy_j
        if cap_j is not None and cap_j <= most_j:
            return False
        self.governor.caps = msgspec.structs.replace(self.governor.caps, energy_j=most_j)
        return True

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> StoppedBy:
        """Train until the plan, patience, a cap or the user ends it; checkpoints and state are complete then."""
        if not self.folder.state.exists():
            with self._timed("save_s"):
                self._write(self.folder.base, self.engine.save_base, self.engine.base_s)
            self.save()
        stopped = self._epochs()
        if stopped == "nan":
            self._event("nan", f"the loss is no longer a number after step {self.progress.step}")
        else:
            self._save_last()
            self.save()
            if 0 < self.progress.step < CALIBRATED_AFTER:
                self._calibrate(ended=True)
        return stopped

    def _epochs(self) -> StoppedBy:
        """Epoch after epoch, evaluated when due; why it ended."""
        progress = self.progress
        while progress.epoch < self.budget.most_epochs:
            patience = self.plan.recipe.patience
            if patience is not None and progress.evaluations_without_gain >= patience:
                return "patience"
            stopped = self._epoch()
            if stopped in ("user", "nan"):
                return stopped
            done = progress.epoch + 1
            due = stopped is not None or done == self.budget.most_epochs or done % self.plan.recipe.evaluate_every == 0
            if stopped is None and done != self.budget.most_epochs and self.budget.near_the_end():
                due = False  # one evaluation at the very end is worth more than two before it
            evaluation: Evaluation | None = None
            if due and progress.evaluated_step != progress.step:
                outcome = self._evaluate()
                if not isinstance(outcome, Evaluation):
                    return outcome
                evaluation = outcome
            self._end_epoch(evaluation, whole=stopped is None)
            if stopped:
                return stopped
        return "epochs"

    def _epoch(self) -> StoppedBy | None:
        """The rest of the epoch in progress; None when it came to its end."""
        progress = self.progress
        with self.meters.energy.window() as window:
            whole = not self.governor.budgeted
            for stretch in self.train.stretches(progress.epoch, progress.step_in_epoch, whole=whole):
                stopped = (
                    self._should_stop() or self._prepare(stretch.stop, window) or self._steps(stretch.stop, window)
                )
                if stopped:
                    return stopped
        return None

    def _steps(self, stop_batch: int, window: Window) -> StoppedBy | None:
        """Train on the epoch's next batches up to one, which are prepared; what ended the run meanwhile, or None."""
        progress, clock = self.progress, self.meters.clock
        mark, mark_j = clock(), window.joules
        for batch in self._batches(stop_batch):
            if batch is None:
                return "memory"
            stopped = self._should_stop()
            if stopped:
                return stopped
            if progress.cut_short:
                self._reopen()
            expected = self.budget.expected_steps(progress.step)
            planned = self.plan.total_steps if self.budget.settled else None
            rate = learning_rate(self.plan.recipe, progress.step, expected, planned)
            report = self._attempt(batch, rate)
            if report is None:
                return "memory"
            if not math.isfinite(report.loss):
                return "nan"
            now, joules = clock(), window.joules
            self._step_s = now - mark
            self.budget.note_step(self._step_s)
            progress.count(batch.number, len(batch.labels), report, self._step_s, difference(joules, mark_j))
            mark, mark_j = now, joules
            self.journal.step(progress, report, len(batch.labels), self._step_s, rate, self.spending.joules()[0])
            if self._aside():
                mark, mark_j = clock(), window.joules
            squeeze = self.governor.squeeze()
            if squeeze and not self.knobs.tighten(squeeze.reason) and squeeze.over_cap:
                return "memory"
            if squeeze is None:
                self.knobs.loosen()
            del batch  # before the next one is made
        return None

    def _aside(self) -> bool:
        """What is due between two steps; whether anything was that is no part of the epoch's figures."""
        step, every, clock = self.progress.step, self.plan.recipe.evaluate_steps or 0, self.meters.clock
        sampled = self.budget.unsampled
        if sampled:
            with self._timed("eval_s"):
                part = self.progress.micro_batch_size
                image_s = evaluated_image_s(self.engine, self.val, part, clock)
            self.budget.note_sample(image_s)
        recorded = every > 0 and step % every == 0 and not self.budget.near_the_end()
        if recorded:
            self._record_accuracy()
        if step == CALIBRATED_AFTER:
            self._calibrate()
        saved = clock() - self._saved_at > self.save_every_s
        if saved:
            self.save()
        return sampled or recorded or saved

    def _batches(self, stop_batch: int) -> Iterator[Batch | None]:
        """The epoch's next; one that memory ran out over is read again, None where nothing is left to turn."""
        source = self.train.epoch(self.progress.epoch, self.progress.step_in_epoch, stop_batch)
        while True:
            short: str | None = None
            try:
                with memory_errors():
                    batch = next(source, None)
            except OutOfMemoryError as error:
                short, batch = f"out of memory while reading images ({error})", None
            if short is not None:  # now: until here the error held what was in memory then
                if not self.knobs.tighten(short):
                    yield None
                    return
                source = self.train.epoch(self.progress.epoch, self.progress.step_in_epoch, stop_batch)
                continue
            if batch is None:
                return
            yield batch
            del batch  # before the next one is made

    def _prepare(self, stop_batch: int, window: Window) -> StoppedBy | None:
        """What the epoch's batches before one need, counted as part of it; why the run ended meanwhile, or None."""
        progress, clock = self.progress, self.meters.clock
        began = mark = clock()
        began_j = window.joules
        images, filling_s, group_s = 0, 0.0, 0.0

        def note(count: int) -> StoppedBy | None:
            nonlocal images, mark, filling_s, group_s
            before, mark = mark, clock()
            if not count:
                return self._should_stop(group_s)
            group_s = mark - before
            images, filling_s = images + count, filling_s + group_s
            self.budget.note_preparing(filling_s / images)
            return self._should_stop()

        stopped = self._ready(self.train, (progress.epoch, stop_batch), "preparing the epoch", note)
        progress.epoch_s += clock() - began
        progress.epoch_j = total(progress.epoch_j, difference(window.joules, began_j))
        self.budget.note_prepared(progress.epoch, stop_batch)
        return stopped

    def _ready(
        self, source: Source, until: tuple[int, int | None], doing: str, note: Callable[[int], StoppedBy | None]
    ) -> StoppedBy | None:
        """Prepare a source, with less memory where that is short; why the run ended meanwhile, or None.

        Args:
            source: of images.
            until: epoch and batch before which it is prepared.
            doing: for the log.
            note: is told how many images were prepared, and says whether to stop.
        """
        while True:
            squeeze: Squeeze | None = None
            try:
                # closed before anything is eased: what it holds counts
                with memory_errors(), closing(source.prepare(*until, self.progress.micro_batch_size)) as counts:
                    for count in counts:
                        stopped = note(count)
                        if stopped:
                            return stopped
                        squeeze = self.governor.squeeze()
                        if squeeze:
                            break
                    else:
                        return None
            except OutOfMemoryError as error:
                squeeze = Squeeze(f"out of memory while {doing} ({error})", over_cap=True)
            assert squeeze is not None
            if not self.knobs.ease(source, squeeze.reason) and squeeze.over_cap:
                return "memory"

    def _attempt(self, batch: Batch, rate: float) -> StepReport | None:
        """One step, in smaller micro-batches while memory runs out; None when even one image at a time is too much."""
        spoilt = False
        while True:
            try:
                if spoilt:
                    with memory_errors():
                        batch = next(iter(self.train.epoch(self.progress.epoch, batch.number, batch.number + 1)))
                return self.engine.train_step(batch, rate, self.progress.micro_batch_size)
            except OutOfMemoryError as error:
                short = f"out of memory ({error})"
            if not self.knobs.tighten(short):  # now: until here the error held what the step had in memory
                return None
            spoilt = batch.images.ndim == 3  # cached features, which the lean trainer writes over

    def _should_stop(self, preparing_s: float = 0.0) -> StoppedBy | None:
        return "user" if self.interrupted() else self.budget.ended_by(self.progress.step, preparing_s)

    def _calibrate(self, *, ended: bool = False) -> None:
        """Put what the first steps say beside the prediction, in the run folder's plan."""
        found = calibrated(
            self.plan,
            self.progress,
            self.budget,
            len(self.train),
            self.spending.so_far(),
            self.meters.memory,
            ended=ended,
        )
        schema.save(msgspec.structs.replace(self.plan, calibrated=found), self.folder.plan)

    def _validate(self) -> Evaluation | StoppedBy:
        """Validate the model as it stands; or why that ends the run."""
        with self._timed("eval_s"):
            while True:
                stopped = self._ready(
                    self.val, (0, None), "evaluating", lambda _: "user" if self.interrupted() else None
                )
                if stopped:
                    return stopped
                began = self.meters.clock()
                try:
                    with memory_errors():
                        part = self.progress.micro_batch_size
                        evaluation = self.engine.evaluate(self.val.epoch(0), part, self.interrupted)
                    break
                except OutOfMemoryError as error:
                    short = f"out of memory while evaluating ({error})"
                # where features of these images are cached, nothing is prepared any more that could be eased
                cached = self.plan.feature_cache is not None and self.plan.feature_cache.val_bytes > 0
                if not (self.knobs.tighten(short) if cached else self.knobs.ease(self.val, short)):
                    return "memory"
            seconds = self.meters.clock() - began
        if evaluation is None:
            return "user"
        if not math.isfinite(evaluation.loss):
            return "nan"
        self.budget.note_evaluation(seconds)
        return evaluation

    def _record_accuracy(self) -> None:
        """A point of the accuracy's course, and what training took until then; what ends the run, the loop notices."""
        evaluation = self._validate()
        if isinstance(evaluation, Evaluation):
            self.journal.accuracy(self.progress, evaluation)

    def _evaluate(self) -> Evaluation | StoppedBy:
        """Validate the model as it stands and keep it if it is the best; or why that ends the run."""
        progress, evaluation = self.progress, self._validate()
        if not isinstance(evaluation, Evaluation):
            return evaluation
        progress.evaluated_step = progress.step
        # one that came only after its epoch was closed belongs to that
        epoch = progress.epoch if progress.step_in_epoch else max(0, progress.epoch - 1)
        progress.evaluations.append((epoch, evaluation.accuracy))
        if progress.best == progress.last:
            self._keep_best(evaluation)
        return evaluation

    def _end_epoch(self, evaluation: Evaluation | None, whole: bool) -> None:
        """Log an epoch, cut short by a cap or whole; after a whole one, make ready for the next."""
        progress = self.progress
        if progress.step > progress.closed_step:
            progress.closed_step = progress.step
            progress.epochs_s.append(progress.epoch_s)
            progress.epochs_j.append(progress.epoch_j)
            self.journal.epoch(progress, evaluation)
        elif evaluation and progress.epochs_s:
            self.journal.late_evaluation(progress.evaluations[-1][0], evaluation)
        self._note_throttling()
        if whole:
            progress.epoch += 1
            progress.step_in_epoch = 0
            progress.epoch_s, progress.epoch_j, progress.loss_sum = 0.0, 0.0, 0.0
            progress.epoch_images = progress.epoch_steps = 0
            if progress.epoch < self.budget.most_epochs:
                self.save()

    def _reopen(self) -> None:
        """Go on with an epoch that a cap had closed: what it took will be said when it ends."""
        progress = self.progress
        progress.epochs_s.pop()
        progress.epochs_j.pop()
        progress.closed_step = max(0, progress.step - progress.step_in_epoch)
        self.journal.rewind(progress.step, progress.epoch)

    def _note_throttling(self) -> None:
        """An event where heat or a weak supply slowed the epoch."""
        before, self._throttle = self._throttle, self.meters.throttle()
        causes = slowing(before, self._throttle)
        if causes:
            self._event("throttled", f"the machine was slowed during the epoch: {causes}")

    # --- what is written ---------------------------------------------------------------------------------------------

    def _keep_best(self, evaluation: Evaluation) -> None:
        self.progress.best_classes = class_accuracies(evaluation, self.plan.data.classes)
        with self._timed("save_s"):
            began = self.meters.clock()
            self._save_weights(self.folder.best, evaluation.accuracy)
            schema.save(find_mistakes(evaluation, self.val.samples, self.plan.data.classes), self.folder.mistakes)
            self.budget.note_weights(self.meters.clock() - began)

    def _save_last(self) -> None:
        with self._timed("save_s"):
            last = self.progress.last
            current = self.progress.evaluated_step == self.progress.step
            self._save_weights(self.folder.last, last[1] if last and current else None)

    def _save_weights(self, path: Path, accuracy: float | None) -> None:
        self.budget.note_weights(self._write(path, lambda at: self.engine.save_weights(at, accuracy)))

    def _write(self, path: Path, write: Callable[[Path], int], before_s: float | None = None) -> float:
        """Seconds that writing one of the run's files took, or took before the run."""
        began = self.meters.clock()
        size_bytes = written(self.engine, path, write)
        took_s = before_s or self.meters.clock() - began
        self.progress.bytes_written += size_bytes
        self.budget.note_written(size_bytes, took_s)
        return took_s

    def _event(self, event: str, message: str) -> None:
        self.journal.event(self.progress.step, event, message)

    def _timed(self, field: str) -> Timed:
        return Timed(self.meters.clock, self.progress, field)
