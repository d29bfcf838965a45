"""A loop on tiny photos with a scripted engine and a clock that only work moves."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

from edgetune.data.folder import scan
from edgetune.data.loader import Batch, Loader
from edgetune.device.energy import EnergyMeter
from edgetune.device.power.constant import UserConstant
from edgetune.device.pressure import Pressure
from edgetune.measure.memory import PeakMeter
from edgetune.schema import Plan
from edgetune.train.display import Display
from edgetune.train.engine import Evaluation, StepReport
from edgetune.train.folder import RunFolder
from edgetune.train.loop import Loop
from edgetune.train.meters import Meters
from edgetune.train.scarcity import OutOfMemoryError


class Clock:
    """Seconds that pass only when somebody works."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class ScriptedEngine:
    """Takes a second a step and two an evaluation; its accuracies, losses and memory errors are scripted."""

    def __init__(self, clock: Clock, depth: int) -> None:
        self.clock, self.depth = clock, depth
        self.accuracies: list[float] = []
        self.losses: dict[int, float] = {}
        self.val_loss = 0.7
        self.evaluated_image_s: float | None = None
        self.save_s = 0.0  # for the model
        self.state_s = 0.0  # for a state, once there was a step
        self.base_bytes, self.base_takes_s = 4, 0.0  # what never trains, and what writing it takes
        self.base_s: float | None = None
        self.device_bytes: int | None = None
        self.most_images: int | None = None
        self.saving_needs_rest = self.saving_fails = self.can_ease = False
        self.rests = 0
        self.steps: list[tuple[int, int]] = []  # images, micro-batch
        self.rates: list[float] = []
        self.limits: list[tuple[int, list[int]]] = []
        self.on_step: Callable[[int], None] = lambda step: None

    def train_step(self, batch: Batch, learning_rate: float, micro_batch_size: int) -> StepReport:
        if self.most_images is not None and micro_batch_size > self.most_images:
            raise OutOfMemoryError("scripted")
        self.clock.now += 1.0
        self.on_step(len(self.steps))
        self.steps.append((len(batch.labels), micro_batch_size))
        self.rates.append(learning_rate)
        loss = self.losses.get(len(self.steps), 1.0)
        return StepReport(loss, (self.depth - 1,), [9.0] * self.depth, None, 100 * len(batch.labels))

    def evaluate(
        self, batches: Iterable[Batch], micro_batch_size: int, stop: Callable[[], bool] = lambda: False
    ) -> Evaluation | None:
        if stop():
            return None
        if self.most_images is not None and micro_batch_size > self.most_images:
            raise OutOfMemoryError("scripted")
        labels = [int(label) for batch in batches for label in batch.labels]
        self.clock.now += 2.0 if self.evaluated_image_s is None else self.evaluated_image_s * len(labels)
        accuracy = self.accuracies.pop(0) if self.accuracies else 0.5
        right = round(accuracy * len(labels))
        predictions = [label if place < right else (label + 1) % 3 for place, label in enumerate(labels)]
        return Evaluation(self.val_loss, list(range(len(labels))), labels, predictions, [0.9] * len(labels))

    def rest(self) -> None:
        self.rests += 1
        self.saving_needs_rest = False

    def save_weights(self, path: Path, accuracy: float | None) -> int:
        self.clock.now += self.save_s
        if self.saving_needs_rest or self.saving_fails:
            raise MemoryError("scripted")
        path.write_text(json.dumps(accuracy))
        return 7

    def save_base(self, path: Path) -> int:
        path.parent.mkdir(exist_ok=True)
        path.write_text("base")
        self.clock.now += self.base_takes_s
        return self.base_bytes

    def save_state(self, path: Path, progress: dict[str, Any]) -> int:
        self.clock.now += self.state_s if progress["step"] else 0.0
        path.write_text(json.dumps(progress))
        return 5

    def load_state(self, base: Path, path: Path) -> dict[str, Any]:
        assert base.read_text() == "base"
        loaded: dict[str, Any] = json.loads(path.read_text())
        return loaded

    def limit(self, k: int, most_tokens: Sequence[int]) -> None:
        self.limits.append((k, list(most_tokens)))

    def ease(self) -> bool:
        could, self.can_ease = self.can_ease, False
        return could

    def device_room_bytes(self) -> int | None:
        return None

    def device_peak_bytes(self) -> int | None:
        return self.device_bytes


class Stage:
    """A loop on the photos with a scripted engine."""

    def __init__(self, plan: Plan, out: Path, power_w: float | None = None) -> None:
        self.plan, self.out = plan, out
        self.clock = Clock()
        self.engine = ScriptedEngine(self.clock, len(plan.blocks))
        self.interrupted = False
        self.pressure = Pressure()
        self.throttle: Callable[[], dict[str, int | None]] = dict
        self.prepare_s = 0.0  # for each image, once
        self.started_s = 0.0  # how long ago the process started
        self.energy = EnergyMeter(UserConstant(power_w) if power_w else None, clock=self.clock, thread=False)

    def loop(self) -> Loop:
        images = scan(Path(self.plan.data.path), 0)
        common: dict[str, Any] = {"image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "seed": 0}
        train = Loader(images.train, batch_size=self.plan.batch_size, augment=True, **common)
        val = Loader(images.val, batch_size=4, augment=False, shuffle=False, **common)
        self.out.mkdir(exist_ok=True)
        if self.prepare_s:
            for source in (train, val):
                source.prepare = self._preparing(len(source))  # type: ignore[method-assign]
        sitting = self.energy.window()
        sitting.__enter__()
        return Loop(
            self.plan,
            self.engine,
            train,
            val,
            RunFolder(self.out),
            Meters(
                PeakMeter.start(),
                self.energy,
                sitting,
                self.clock.now - self.started_s,
                self.clock,
                lambda: self.pressure,
                self.throttle,
            ),
            Display(self.plan, quiet=True),
            lambda: self.interrupted,
            save_every_s=1e9,
        )

    def _preparing(self, images: int) -> Callable[..., Generator[int, None, None]]:
        """A source's `prepare` that takes its time, once."""
        left = [1] * images

        def prepare(epoch: int, stop_batch: int | None = None, micro_batch_size: int = 1) -> Generator[int, None, None]:
            while left:
                left.pop()
                self.clock.now += self.prepare_s
                yield 1

        return prepare

    def records(self, kind: str) -> list[dict[str, Any]]:
        """What the metrics hold of a kind."""
        lines = (self.out / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] == kind]

    def events(self) -> list[str]:
        """What happened so far, by name; nothing where nothing was logged."""
        if not (self.out / "metrics.jsonl").exists():
            return []
        return [record["event"] for record in self.records("event")]
