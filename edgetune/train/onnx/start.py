"""An ONNX engine for a plan, with its weights on disk and its batches from images or from cached features."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path

import numpy as np

from edgetune.allocator import release_code
from edgetune.data.loader import Loader
from edgetune.model.hub import find_weights
from edgetune.model.reading import write_base
from edgetune.model.registry import find_spec
from edgetune.plan.engines import refuse_levers
from edgetune.plan.job import levers_of
from edgetune.schema import Plan
from edgetune.train.engine import Engine, Source
from edgetune.train.features import cached_sources
from edgetune.train.folder import RunFolder
from edgetune.train.onnx.cache import are_written, from_folder, graphs_of
from edgetune.train.onnx.engine import OnnxEngine
from edgetune.train.onnx.runtime import LIBRARY, refuse_old_runtime, share_arena

# What training brings besides onnxruntime, by name: for the baseline, which counts all imports.
_LIBRARIES = ("numpy.random", "PIL.Image", "psutil", "edgetune.train.loop")


def warm_up(plan: Plan) -> None:
    """Bring in libraries and one dummy matrix product: the bare process of a run.

    Raises:
        InputError: onnxruntime is too old.
    """
    refuse_old_runtime()
    for name in _LIBRARIES:
        import_module(name)
    share_arena()
    square = np.ones((256, 256), np.float32)
    with np.errstate(all="ignore"):  # an emulated processor raises flags here
        (square @ square).sum()
    release_code(LIBRARY)  # before the baseline, as before a step: what loading it took is no part of either


def starts_processes(plan: Plan, folder: RunFolder) -> bool:
    """Whether a process of its own will write the graphs: its memory counts like this one's."""
    return not folder.graphs.is_dir() and not are_written(plan)


def start_engine(
    plan: Plan, folder: RunFolder, train: Loader, val: Loader, *, resume: bool
) -> tuple[Engine, Source, Source]:
    """The engine, and where training and validation batches come from.

    Raises:
        InputError: the weights can't be used, or the plan asks for what this engine has not.
        StorageError: there is no room for them.
    """
    refuse_levers(levers_of(plan), "plan anew, or go on with --engine torch")
    exported = folder.graphs.is_dir()
    if exported:
        from edgetune.train.onnx.exported import check_copy  # what it brings, other runs do without

        check_copy(folder.graphs)
    load = from_folder(folder.graphs) if exported else graphs_of(plan)
    base_s = None
    if not resume:
        folder.base.parent.mkdir(parents=True, exist_ok=True)
        spec = find_spec(plan.model).at(plan.image_size, len(plan.data.classes))
        source = find_weights(spec, Path(plan.weights) if plan.weights else None)
        began = time.monotonic()
        write_base(spec, source, folder.base, class_names=plan.data.classes, seed=plan.seed)
        base_s = time.monotonic() - began
    engine = OnnxEngine(plan, folder.base, load)
    engine.base_s = base_s
    return engine, *cached_sources(plan, engine, folder, train, val)
