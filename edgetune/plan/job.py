"""What the cost model prices: everything of a plan that costs memory, time or energy, and nothing else.

A lever is one field here, one term in `bill` or `cost`, one field of the plan and one branch in the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from edgetune.alast import kept_count
from edgetune.model.registry import find_spec
from edgetune.model.spec import ViTSpec
from edgetune.plan.levers import Levers, recomputed_blocks
from edgetune.plan.methods import BAND, Method
from edgetune.schema import BlockPlan, Engine, Plan


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One training job. Token counts are patch tokens leaving each block; the prefix tokens come on top.

    `keep_max` bounds every step, `keep_expected` is what a step is expected to keep.
    """

    spec: ViTSpec
    batch_size: int
    micro_batch_size: int
    trainable: tuple[bool, ...]
    k: int
    embeddings_trainable: bool
    keep_max: tuple[int, ...]
    keep_min: tuple[int, ...]
    keep_expected: tuple[float, ...]
    levers: Levers = Levers()
    lora_rank: int = 0  # 0: whole weights train
    drops_tokens: bool = False
    workers: int = 0
    allocator: Literal["fast", "lean"] = "fast"
    engine: Engine = "torch"

    @property
    def lowest(self) -> int:
        """The lowest block that may train; the depth where none may."""
        return self.trainable.index(True) if True in self.trainable else self.spec.depth

    @property
    def optimizer(self) -> str:
        """The update rule."""
        return self.levers.optimizer

    @property
    def saved_activations(self) -> str:
        """Whether blocks are remembered or run again."""
        return self.levers.saved_activations

    @property
    def recomputed(self) -> range:
        """The blocks that are run again in the backward pass."""
        return recomputed_blocks(self.levers, 0 if self.embeddings_trainable else self.lowest, self.spec.depth)

    @property
    def lean(self) -> bool:
        """Whether the lean trainer runs it."""
        return self.levers.trainer == "lean"

    @property
    def cached(self) -> bool:
        """Whether what lies below the lowest trainable block comes from a cache."""
        return self.levers.feature_cache != "off"

    @property
    def over_features(self) -> bool:
        """Whether steps train over cached features: there is a cache, and something lies below it."""
        return self.cached and self.lowest > 0

    @property
    def accumulates(self) -> bool:
        """Whether a batch takes more than one forward and backward pass."""
        return self.micro_batch_size < self.batch_size

    @property
    def parts(self) -> int:
        """Forward and backward passes that a batch takes."""
        return -(-self.batch_size // self.micro_batch_size)

    def blocks(self) -> list[BlockPlan]:
        """The blocks as the plan lists them."""
        recomputed = self.recomputed
        return [
            BlockPlan(
                index=index,
                trainable=trains,
                keep_max_tokens=most,
                keep_min_tokens=fewest,
                recomputed=index in recomputed,
            )
            for index, (trains, most, fewest) in enumerate(
                zip(self.trainable, self.keep_max, self.keep_min, strict=True)
            )
        ]


def entering(spec: ViTSpec, leaving: Sequence[float]) -> list[float]:
    """Tokens entering each block, prefix included, given the patch tokens that leave each."""
    prefix = spec.prefix
    return [prefix + spec.patches, *[prefix + kept for kept in leaving[:-1]]]


def job_for(
    method: Method,
    spec: ViTSpec,
    *,
    batch_size: int,
    micro_batch_size: int,
    workers: int = 0,
    allocator: Literal["fast", "lean"] = "fast",
    engine: Engine = "torch",
    trained: int | None = None,
    k: int | None = None,
    band_max: float = BAND[1],
) -> Job:
    """The job of a method, optionally with fewer trailing blocks, a smaller K or a narrower token band."""
    trained = method.trained if trained is None else trained
    lowest = spec.depth - trained
    most, fewest, expected = _tokens(method, spec, lowest, band_max)
    return Job(
        spec=spec,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        trainable=tuple(index >= lowest for index in range(spec.depth)),
        k=min(method.k if k is None else k, trained),
        embeddings_trainable=method.embeddings_trainable,
        keep_max=tuple(most),
        keep_min=tuple(fewest),
        keep_expected=tuple(expected),
        levers=method.levers,
        lora_rank=method.lora.rank if method.lora else 0,
        drops_tokens=method.alast is not None,
        workers=workers,
        allocator=allocator,
        engine=engine,
    )


def job_of(plan: Plan) -> Job:
    """The job a plan describes."""
    spec = find_spec(plan.model).at(plan.image_size, len(plan.data.classes))
    most = [block.keep_max_tokens for block in plan.blocks]
    fewest = [block.keep_min_tokens for block in plan.blocks]
    budget = plan.alast.initial_budget if plan.alast else 1.0
    return Job(
        spec=spec,
        batch_size=plan.batch_size,
        micro_batch_size=plan.micro_batch_size,
        trainable=tuple(block.trainable for block in plan.blocks),
        k=plan.k,
        embeddings_trainable=plan.embeddings_trainable,
        keep_max=tuple(most),
        keep_min=tuple(fewest),
        keep_expected=tuple(_compound(spec.patches, budget, fewest, most)),
        levers=levers_of(plan),
        lora_rank=plan.lora.rank if plan.lora else 0,
        drops_tokens=plan.alast is not None,
        workers=plan.workers,
        allocator=plan.allocator,
        engine=plan.engine,
    )


def levers_of(plan: Plan) -> Levers:
    """The levers as a plan has set them."""
    same = {name: getattr(plan, name) for name in Levers.__struct_fields__ if hasattr(plan, name) and name != "k"}
    cache = plan.feature_cache
    same |= {"feature_cache": cache.precision if cache else "off", "feature_views": cache.views if cache else 1}
    return Levers(**same)


def _tokens(method: Method, spec: ViTSpec, lowest: int, band_max: float) -> tuple[list[int], list[int], list[float]]:
    """Per block: the most, the fewest and the expected patch tokens leaving it."""
    patches, depth = spec.patches, spec.depth
    alast = method.alast
    if alast is None or lowest == depth:
        return [patches] * depth, [patches] * depth, [float(patches)] * depth
    if alast.mode == "constrained":
        # below the trained part all tokens stay, so that what lies there is the same for every step
        first = max(0, lowest - 1)
        ceiling = max(1, int(min(band_max, method.band[1]) * patches))
        floor = max(1, min(int(method.band[0] * patches), ceiling))
        most = [patches] * first + [ceiling] * (depth - first)
        fewest = [patches] * first + [floor] * (depth - first)
    else:
        free = [0] * depth, [patches] * depth
        most = [int(kept) for kept in _compound(patches, alast.budget_max, *free)]
        fewest = [int(kept) for kept in _compound(patches, alast.budget_min, *free)]
    return most, fewest, _compound(patches, alast.initial_budget, fewest, most)


def _compound(patches: int, budget: float, fewest: Sequence[int], most: Sequence[int]) -> list[float]:
    """Patch tokens leaving each block when every block has the same budget, inside a band."""
    leaving, kept = [], patches
    for low, high in zip(fewest, most, strict=True):
        kept = min(max(kept_count(budget, kept + 1), low), high, kept)
        leaving.append(float(kept))
    return leaving
