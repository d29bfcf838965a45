"""Turning the plan's knobs while a run is under way: tighter where memory is short, back where there is room again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edgetune.allocator import keep_malloc_lean, release_free_memory, settle_malloc
from edgetune.schema import Plan
from edgetune.train.engine import Engine, Source
from edgetune.train.governor import Governor
from edgetune.train.knobs import ladder, most_tokens
from edgetune.train.progress import Progress

LESS_ROOM = "less room than was planned for"


class Turning:
    """The knobs of a run: rungs of a ladder, of which `progress.rung` is where it stands.

    Args:
        plan: what they are as planned.
        engine: is told of every change.
        governor: says when there is room again.
        progress: of the run.
        log: writes an event: its name, and what happened.
    """

    def __init__(
        self, plan: Plan, engine: Engine, governor: Governor, progress: Progress, log: Callable[[str, str], None]
    ) -> None:
        self._plan, self._engine, self._governor, self._log = plan, engine, governor, log
        self.progress = progress
        self.ladder = ladder(plan)
        self._at_the_end = False  # of the ladder, and said so
        self._unforeseen_bytes = 0

    def resume(self, progress: Progress, sources: Sequence[Source]) -> None:
        """Take up where an earlier sitting was."""
        self.progress = progress
        progress.rung = min(progress.rung, len(self.ladder) - 1)  # another engine's ladder may be shorter
        knobs = self.ladder[progress.rung]
        progress.micro_batch_size = knobs.micro_batch_size
        if progress.eased:
            self._ease_all(sources)
        if progress.rung:  # memory was short
            keep_malloc_lean()
            release_free_memory()
        self._engine.limit(knobs.k, most_tokens(self._plan, knobs.token_share))

    def make_room(self, process_bytes: int, images_bytes: int, sources: Sequence[Source]) -> None:
        """Turn the knobs before any step, as far as bytes that no plan knew of ask for it.

        Args:
            process_bytes: of the bare process.
            images_bytes: of images being decoded: while features are cached, or all the time where none are.
            sources: of images; eased where features are cached from them.
        """
        cached = self._plan.feature_cache is not None
        self._unforeseen_bytes = process_bytes + (0 if cached else images_bytes)
        while not self._has_room(self.progress.rung) and self.tighten(LESS_ROOM):
            pass
        cap_bytes = self._governor.caps.memory_bytes or math.inf
        needed_bytes = self._plan.predicted.peak_memory_bytes + process_bytes + images_bytes
        if cached and images_bytes and needed_bytes > cap_bytes and self._ease_all(sources):
            self._log("tightened", f"{LESS_ROOM}: images are prepared in smaller groups")

    def tighten(self, reason: str) -> bool:
        """Go to the next rung of the ladder; False where there is none."""
        self._governor.tightened()
        if self.progress.rung + 1 == len(self.ladder):
            if not self._at_the_end:
                self._log("memory", f"{reason}, and nothing is left to turn")
            self._at_the_end = True
            return False
        keep_malloc_lean()
        self._turn(self.progress.rung + 1, "tightened", reason)
        release_free_memory()  # or what the larger ones left would count against the smaller
        return True

    def ease(self, source: Source, reason: str) -> bool:
        """Need less while images are prepared; False where nothing is left to turn."""
        if not self._ease_all([source]):
            return self.tighten(reason)
        self._governor.tightened()
        self._log("tightened", f"{reason}: images are prepared in smaller groups")
        release_free_memory()
        return True

    def loosen(self) -> None:
        """Go back a rung, where there has been room for it."""
        rung = self.progress.rung
        if not rung or not self._has_room(rung - 1):
            return
        growth = self.ladder[rung - 1].peak_bytes - self.ladder[rung].peak_bytes
        if self._governor.may_loosen(max(0, growth)):
            self._turn(rung - 1, "loosened", "there is room again")
            if not self.progress.rung:
                settle_malloc(self._plan)

    def _has_room(self, rung: int) -> bool:
        """Whether a rung is within the cap, as predicted and with what nobody foresaw."""
        cap_bytes = self._governor.caps.memory_bytes
        less_bytes = self.ladder[0].peak_bytes - self.ladder[rung].peak_bytes
        needed_bytes = self._plan.predicted.peak_memory_bytes + self._unforeseen_bytes - less_bytes
        return not self._unforeseen_bytes or cap_bytes is None or needed_bytes <= cap_bytes

    def _ease_all(self, sources: Sequence[Source]) -> bool:
        """Whether any of them, or the engine, can do with less from now on."""
        eased = any([*(source.ease() for source in sources), self._engine.ease()])
        self.progress.eased = self.progress.eased or eased
        return eased

    def _turn(self, rung: int, event: str, reason: str) -> None:
        knobs, before = self.ladder[rung], self.ladder[self.progress.rung]
        self.progress.rung, self.progress.micro_batch_size = rung, knobs.micro_batch_size
        self._engine.limit(knobs.k, most_tokens(self._plan, knobs.token_share))
        self._at_the_end = False
        self._log(event, f"{reason}: {knobs.difference(before)}")
