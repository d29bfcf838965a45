"""`fit`: one plan, one run folder, from the first artifact to the last."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from edgetune import schema
from edgetune.__about__ import __version__
from edgetune.data.folder import scan
from edgetune.data.loader import Loader
from edgetune.device.board import identify_entry
from edgetune.device.energy import EnergyMeter
from edgetune.device.power import find_power
from edgetune.device.system import System
from edgetune.device.throttle import delta, read_throttle, throttled
from edgetune.errors import DivergedError, InputError, MissingDependencyError
from edgetune.measure.memory import PeakMeter
from edgetune.model.registry import find_spec
from edgetune.profile import profile_device
from edgetune.schema import Plan, Profile, Result
from edgetune.train.allocator import keep_malloc_lean
from edgetune.train.display import Display
from edgetune.train.folder import RunFolder
from edgetune.train.loop import Loop, Meters

_IDLE_S = 2.0  # long enough for a few readings of the slowest sensor; a profile's longer measurement is preferred


def fit(
    plan: Plan,
    out: Path | str,
    *,
    profile: Profile | None = None,
    config: dict[str, Any] | None = None,
    power_w: float | None = None,
    save_every_s: float = 600.0,
    quiet: bool = False,
) -> Result:
    """Fine-tune as planned, and leave a run folder at `out`.

    Args:
        plan: from `make_plan`.
        out: a folder that does not exist yet, or is empty.
        profile: of this machine, copied into the run folder; without one the board is read, and nothing timed.
        config: the options the plan was made from; copied into the run folder.
        power_w: what the machine draws while training, where no sensor says; energy is then marked as modelled.
        save_every_s: seconds between resumable states within an epoch.
        quiet: print nothing.

    Raises:
        InputError: data, weights or folder can't be used; nothing was trained.
        DivergedError: the loss stopped being a number; the best checkpoint so far is kept.
    """
    folder = RunFolder(Path(out))
    folder.create()
    try:
        schema.save(plan, folder.plan)
        schema.save(profile or profile_device(power_w=power_w, probes=False), folder.profile)
        schema.save({"schema": "edgetune/config/1", **(config or {})}, folder.config)
        return _run(plan, folder, resume=False, power_w=power_w, save_every_s=save_every_s, quiet=quiet)
    except BaseException:
        folder.discard()
        raise


def resume(
    out: Path | str, *, power_w: float | None = None, save_every_s: float = 600.0, quiet: bool = False
) -> Result:
    """Go on with an interrupted run; joules and seconds spent before count against its caps. See `fit`."""
    folder = RunFolder(Path(out))
    folder.open()
    plan = schema.load(folder.plan, Plan)
    return _run(plan, folder, resume=True, power_w=power_w, save_every_s=save_every_s, quiet=quiet)


def _run(
    plan: Plan, folder: RunFolder, *, resume: bool, power_w: float | None, save_every_s: float, quiet: bool
) -> Result:
    started = time.monotonic() - (time.time() - psutil.Process().create_time())
    if plan.allocator == "lean":
        keep_malloc_lean()
    try:
        from edgetune.model.vit import VisionTransformer
        from edgetune.model.weights import build_model
        from edgetune.train import torch_engine
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "torch", "torch", "fit") from None
    memory = PeakMeter.start(lambda: torch_engine.start(plan), children=plan.workers > 0, shared_folders=[folder.path])
    spec = find_spec(plan.model).at(plan.image_size, len(plan.data.classes))
    images = scan(Path(plan.data.path), plan.seed)
    if images.classes != plan.data.classes:
        raise InputError(f"{plan.data.path} has other classes than the plan was made for; plan anew.")
    recipe = plan.recipe
    common: dict[str, Any] = {"image_size": spec.image_size, "mean": spec.mean, "std": spec.std, "seed": plan.seed}
    train = Loader(
        images.train,
        batch_size=plan.batch_size,
        augment=recipe.augment,
        flip=recipe.flip,
        workers=plan.workers,
        **common,
    )
    val = Loader(images.val, batch_size=plan.micro_batch_size, augment=False, shuffle=False, **common)
    if resume:  # the state holds every weight
        model = VisionTransformer(spec)
    else:
        weights = Path(plan.weights) if plan.weights else None
        model, _ = build_model(spec, weights, class_names=plan.data.classes, seed=plan.seed)
    engine = torch_engine.TorchEngine(plan, model)

    system = System()
    board, entry = identify_entry(system)
    source = find_power(system, board, entry, power_w)
    throttle_before = read_throttle(system)
    with (
        EnergyMeter(source) as energy,
        _interruptible() as interrupted,
        Display(plan, quiet) as display,
    ):
        if source is not None:
            energy.idle_w = _profiled_idle_w(folder) or energy.idle(_IDLE_S)
        meters = Meters(memory, energy, started)
        loop = Loop(plan, engine, train, val, folder, meters, display, interrupted, save_every_s)
        if resume:
            loop.resume()
        stopped_by = loop.run()
        result = _result(loop, stopped_by, source, throttled(delta(throttle_before, read_throttle(system))))
    train.close()
    memory.stop()
    schema.save(result, folder.result)
    _report(folder)
    if stopped_by == "nan":
        kept = f"the best checkpoint is {folder.best}" if folder.best.exists() else "no epoch had been evaluated yet"
        raise DivergedError(f"--lr {plan.recipe.learning_rate:g} made the loss diverge; try a lower one ({kept}).")
    return result


def _profiled_idle_w(folder: RunFolder) -> float | None:
    return schema.load(folder.profile, Profile).power.idle_w if folder.profile.exists() else None


def _report(folder: RunFolder) -> None:
    from edgetune.report import write_report

    write_report(folder.path)


def _result(loop: Loop, stopped_by: schema.StoppedBy, source: Any, throttled_: bool | None) -> Result:
    progress, plan = loop.progress, loop.plan
    joules, net = loop.joules()
    best, last = progress.best, progress.last
    predicted = plan.predicted
    steps = max(1, progress.step)
    return Result(
        stopped_by=stopped_by,
        accuracy=schema.Accuracy(
            best=best[1] if best else None,
            last=last[1] if last else None,
            best_epoch=best[0] if best else None,
            classes=progress.best_classes,
        ),
        memory=schema.MemoryResult(
            cap_bytes=plan.caps.memory_bytes,
            baseline_bytes=loop.meters.memory.baseline_bytes,
            predicted_peak_bytes=predicted.peak_memory_bytes,
            measured_peak_bytes=max(progress.peak_bytes, loop.meters.memory.peak_bytes() or 0) or None,
            device_peak_bytes=loop.engine.device_peak_bytes(),
        ),
        time=schema.TimeResult(
            total_s=loop.seconds(), epochs_s=progress.epochs_s, eval_s=progress.eval_s, save_s=progress.save_s
        ),
        energy=schema.EnergyResult(
            cap_j=plan.caps.energy_j,
            total_j=joules,
            net_j=net,
            epochs_j=progress.epochs_j,
            source=source.name if source else None,
            scope=source.scope if source else None,
            measured=bool(source and source.measured),
        ),
        work=schema.Work(
            images=progress.images,
            train_flops=progress.train_flops,
            trained_block_steps=progress.trained_block_steps,
            mean_keep=[
                round(kept / steps / find_spec(plan.model).at(plan.image_size).patches, 4) for kept in progress.kept_sum
            ],
            bytes_written=progress.bytes_written,
        ),
        throttled=throttled_,
        warnings=[
            *plan.warnings,
            *loop.meters.memory.warnings,
            *loop.meters.energy.warnings,
            *loop.train.warnings,
            *loop.val.warnings,
        ],
        edgetune_version=__version__,
        created=schema.now(),
    )


@contextmanager
def _interruptible() -> Iterator[Any]:
    """Turn the first Ctrl-C or SIGTERM into a request that the loop sees; a second one ends the process at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[number] = signal.signal(number, ask)
        except ValueError:  # not in the main thread: the caller handles signals
            pass
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_code(result: Result) -> int:
    """The process's exit status for a run that ended this way (see the contract in the README)."""
    return {"epochs": 0, "patience": 0, "user": 130, "nan": 2}.get(result.stopped_by, 4)


__all__ = ["exit_code", "fit", "resume"]
