"""A lean engine for a plan, with its weights on disk and its batches from images or from cached features."""

from __future__ import annotations

import time
from pathlib import Path

from edgetune.data.loader import Loader
from edgetune.model.hub import find_weights
from edgetune.model.registry import find_spec
from edgetune.model.store import convert_weights
from edgetune.plan.job import levers_of
from edgetune.plan.levers import frozen_arithmetic
from edgetune.schema import Plan
from edgetune.train.engine import Source
from edgetune.train.features import cached_sources
from edgetune.train.folder import RunFolder
from edgetune.train.lean.engine import LeanEngine


def start_engine(
    plan: Plan, folder: RunFolder, train: Loader, val: Loader, *, resume: bool
) -> tuple[LeanEngine, Source, Source]:
    """The engine, and where training and validation batches come from.

    The weights are first turned into one file under timm's names, tensor by tensor, so that a process never holds
    more of a model than it trains.

    Raises:
        InputError: the weights can't be used.
        StorageError: there is no room for them.
    """
    base_s = None if resume else convert_base(plan, folder.base)
    engine = LeanEngine(plan, folder.base)
    engine.base_s = base_s
    return engine, *cached_sources(plan, engine, folder, train, val)


def convert_base(plan: Plan, base: Path) -> float:
    """Write the weights that a run starts from, each in the precision it will be used in; seconds, without fetching."""
    spec = find_spec(plan.model).at(plan.image_size, len(plan.data.classes))
    source = find_weights(spec, Path(plan.weights) if plan.weights else None)
    began = time.monotonic()
    base.parent.mkdir(parents=True, exist_ok=True)
    frozen = tuple(f"blocks.{block.index}." for block in plan.blocks if not block.trainable or plan.lora)
    matrices = {parameter.name for parameter in spec.parameters() if len(parameter.shape) > 1}
    half = plan.frozen_weights == "bf16" or (
        plan.frozen_weights == "disk" and frozen_arithmetic(levers_of(plan), adapters=plan.lora is not None) == "bf16"
    )

    def dtype(name: str) -> str:
        return "BF16" if half and name.startswith(frozen) and name in matrices else "F32"

    convert_weights(
        spec,
        source,
        base,
        dtype=dtype,
        class_names=plan.data.classes,
        seed=plan.seed,
    )
    return time.monotonic() - began
