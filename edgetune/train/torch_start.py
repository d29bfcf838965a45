"""An engine over torch for a plan: the lean trainer's, or autograd's."""

from __future__ import annotations

from importlib import import_module

from edgetune import schema
from edgetune.data.loader import Loader
from edgetune.schema import Plan, Profile
from edgetune.train import torch_engine
from edgetune.train.engine import Engine, Source
from edgetune.train.folder import RunFolder
from edgetune.train.torch_base import CudaMemory


def warm_up(plan: Plan) -> None:
    """The bare process of a run: libraries, threads, one dummy matrix product. Lean modules before memory is measured.

    Raises:
        InputError: the plan is for a GPU that torch can't use.
    """
    if plan.trainer == "lean":
        import_module("edgetune.train.lean.start")
    torch_engine.start(plan)


def device_memory(plan: Plan, folder: RunFolder) -> CudaMemory | None:
    """The memory of the GPU that a plan is for, the machine's own where the run's profile says so; None: of no GPU."""
    if plan.device != "cuda":
        return None
    return CudaMemory(unified=bool(schema.load(folder.profile, Profile).memory.unified))


def starts_processes(plan: Plan, folder: RunFolder) -> bool:
    """Whether starting the engine takes processes beside this one, whose memory then counts: never."""
    return False


def start_engine(
    plan: Plan, folder: RunFolder, train: Loader, val: Loader, *, resume: bool
) -> tuple[Engine, Source, Source]:
    """The engine of a plan, and where its batches come from: images, or cached features of them.

    Raises:
        InputError: the weights can't be used.
        StorageError: there is no room for them.
    """
    if plan.trainer == "autograd":
        return torch_engine.TorchEngine(plan, torch_engine.load_model(plan, blank=resume)), train, val
    from edgetune.train.lean.start import start_engine

    return start_engine(plan, folder, train, val, resume=resume)
