"""What a person sees while a run goes on: a live bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from edgetune.schema import Plan
from edgetune.units import format_duration, format_energy, format_size

if TYPE_CHECKING:
    from rich.progress import Progress


class Display:
    """Context manager; every call is cheap enough for each step. Without a terminal rich stays unloaded: 4 MB."""

    def __init__(self, plan: Plan, quiet: bool = False) -> None:
        self._epochs, self._quiet = plan.epochs, quiet
        self._bar = None if quiet or not sys.stderr.isatty() else _bar()
        if self._bar:
            self._task = self._bar.add_task("", total=plan.total_steps, facts="")

    def __enter__(self) -> Display:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(
        self, *, epoch: int, step: int, loss: float, images_per_s: float, memory_bytes: int | None, joules: float | None
    ) -> None:
        """One optimizer step is done."""
        if self._bar:
            facts = [f"loss {loss:.3f}", f"{images_per_s:.1f} img/s", format_size(memory_bytes)]
            if joules is not None:
                facts.append(format_energy(joules))
            self._bar.update(
                self._task, completed=step, description=f"epoch {epoch + 1}/{self._epochs}", facts="  ".join(facts)
            )

    def epoch(
        self,
        *,
        epoch: int,
        loss: float,
        accuracy: float | None,
        seconds: float,
        joules: float | None,
        memory_bytes: int | None,
    ) -> None:
        """One epoch is done; `accuracy` is None where it was not evaluated."""
        energy = f"  {format_energy(joules)}" if joules is not None else ""
        validated = f"  val accuracy {accuracy:.1%}" if accuracy is not None else ""
        self.say(
            f"epoch {epoch + 1}/{self._epochs}  loss {loss:.4f}{validated}"
            f"  {format_duration(seconds)}{energy}  {format_size(memory_bytes)}"
        )

    def say(self, sentence: str) -> None:
        """One line for the person watching."""
        if self._bar:
            self._bar.console.print(sentence, markup=False)
        elif not self._quiet:
            print(sentence, file=sys.stderr, flush=True)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(compact=True),
        console=Console(file=sys.stderr, highlight=False, soft_wrap=True),
        transient=True,
    )
