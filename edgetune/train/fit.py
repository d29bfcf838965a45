"""`fit`: one plan, one run folder, from the first artifact to the last."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import msgspec

from edgetune import schema
from edgetune.__about__ import __version__
from edgetune.allocator import release_free_memory, settle_allocators
from edgetune.data.folder import scan
from edgetune.data.loader import Loader
from edgetune.device.board import identify_entry
from edgetune.device.energy import EnergyMeter, Window, idle_seconds
from edgetune.device.power import PowerSource, facts_of, find_power
from edgetune.device.power.battery import CHARGE_SHARE, spendable_j
from edgetune.device.pressure import read_pressure
from edgetune.device.system import System
from edgetune.device.throttle import delta, read_throttle, throttled
from edgetune.errors import DivergedError, InputError, MissingDependencyError
from edgetune.measure.memory import PeakMeter
from edgetune.model.registry import find_spec
from edgetune.plan.engines import refuse_levers
from edgetune.plan.job import levers_of
from edgetune.schema import Plan, Profile, Result
from edgetune.train.display import Display
from edgetune.train.folder import CONFIG_SCHEMA, RunFolder
from edgetune.train.loop import Loop
from edgetune.train.meters import Meters
from edgetune.train.room import beyond_plan, check_room, files_in_memory
from edgetune.train.scarcity import OutOfMemoryError, memory_errors
from edgetune.units import format_energy

_STARTERS = {"torch": "edgetune.train.torch_start", "onnx": "edgetune.train.onnx.start"}
_PARTS_OF_A_MACHINE = ("cpu-package", "cpu-package+gpu", "gpu", "pmic-sum")  # what a sensor may count
_ANSWERS_WITHIN_S, _LOOK_EVERY_S = 3.0, 0.05  # a sensor that is to hold a cap
_IDLE_S, _LONGEST_IDLE_S = 2.0, 4.0  # a profile's longer measurement is preferred


class _Sitting(NamedTuple):
    """How this process runs its part of a run."""

    power_w: float | None
    save_every_s: float
    quiet: bool
    started: float  # on the monotonic clock
    system: System


def fit(
    plan: Plan,
    out: Path | str,
    *,
    profile: Profile | None = None,
    config: dict[str, Any] | None = None,
    power_w: float | None = None,
    save_every_s: float = 600.0,
    quiet: bool = False,
    started: float | None = None,
    system: System | None = None,
    graphs: Path | None = None,
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
        started: the moment on the monotonic clock from which the time cap counts; None: now.
        system: where sensors are read; None: this machine.
        graphs: a folder of training graphs for the ONNX engine (`edgetune.train.onnx.exported`); None: written here.

    Raises:
        InputError: data, weights, folder or caps can't be used; nothing was trained.
        DivergedError: the loss stopped being a number; the best checkpoint so far is kept.
    """
    folder = RunFolder(Path(out))
    with folder.held():
        folder.create()
        sitting = _sitting(plan, power_w, save_every_s, quiet, started, system)
        try:
            schema.save(
                {"schema": CONFIG_SCHEMA, **(config or {})}, folder.config
            )  # first: marks the folder as a run's
            schema.save(plan, folder.plan)
            here = None if sitting.system.live else sitting.system.root
            schema.save(profile or _read_board(here, sitting.power_w), folder.profile)
            if graphs is not None:
                from edgetune.train.onnx.exported import copy_graphs

                copy_graphs(graphs, folder.graphs)
            return _run(plan, folder, sitting, resume=False)
        except BaseException:
            folder.discard()
            raise


def resume(
    out: Path | str,
    *,
    power_w: float | None = None,
    save_every_s: float = 600.0,
    quiet: bool = False,
    started: float | None = None,
    system: System | None = None,
    engine: schema.Engine | None = None,
) -> Result:
    """Go on with an interrupted run; joules and seconds spent before count against its caps. See `fit`.

    Args:
        out: the run folder.
        power_w: see `fit`.
        save_every_s: see `fit`.
        quiet: see `fit`.
        started: see `fit`.
        system: see `fit`.
        engine: another engine than the one that began the run.

    Raises:
        InputError: the folder holds no run to go on with, or the engine can't take it up.
    """
    folder = RunFolder(Path(out))
    folder.check()
    with folder.held():
        plan = _under(schema.load(folder.plan, Plan), engine)
        folder.open()
        return _run(plan, folder, _sitting(plan, power_w, save_every_s, quiet, started, system), resume=True)


def planned_engine(out: Path, engine: schema.Engine | None) -> schema.Engine:
    """The engine that will go on with the run in `out`; nothing is written.

    Raises:
        InputError: the folder holds no run to go on with, or the engine can't take it up.
    """
    folder = RunFolder(out)
    folder.check()
    return _under(schema.load(folder.plan, Plan), engine).engine


def _under(plan: Plan, engine: schema.Engine | None) -> Plan:
    """A plan in progress, for another engine where one is named: they share the state of the lean trainer."""
    if engine is None or engine == plan.engine:
        return plan
    if plan.trainer != "lean":
        raise InputError(f"--engine {engine} can't go on with a run under autograd; leave it out.")
    if engine == "onnx":
        if plan.device != "cpu":
            raise InputError(f"--engine onnx trains on the CPU alone, and this run is for {plan.device}; leave it out.")
        refuse_levers(levers_of(plan), "leave it out")
    elif plan.alast is not None and plan.alast.mode == "reference":
        raise InputError(f"--engine torch can't go on with --method {plan.method} of the ONNX engine; leave it out.")
    return msgspec.structs.replace(plan, engine=engine)


def _sitting(
    plan: Plan,
    power_w: float | None,
    save_every_s: float,
    quiet: bool,
    started: float | None,
    system: System | None,
) -> _Sitting:
    return _Sitting(
        power_w=plan.power_w if power_w is None else power_w,
        save_every_s=save_every_s,
        quiet=quiet,
        started=time.monotonic() if started is None else started,
        system=system or System(),
    )


def _run(plan: Plan, folder: RunFolder, sitting: _Sitting, *, resume: bool) -> Result:
    source = find_power(sitting.system, *identify_entry(sitting.system), sitting.power_w)
    if source is None and plan.caps.energy_j is not None:
        raise InputError("--energy can't be held here: no power sensor answers; add --power with the watts drawn.")
    # now: imports, reading weights and measuring what is drawn at rest are part of what a run spends
    with EnergyMeter(source, warn=sitting.system.warn) as energy, energy.window() as window:
        if plan.caps.energy_j is not None:
            _await_watts(energy)
        ended = _train(plan, folder, sitting, energy, window, resume=resume)
    warnings = [*ended.warnings, *sitting.system.warnings]
    result = _result(ended.loop, ended.stopped_by, source, ended.throttled, warnings)
    schema.save(result, folder.result)
    _report(folder)
    if ended.stopped_by == "nan":
        kept = f"the best checkpoint is {folder.best}" if folder.best.exists() else "no epoch had been evaluated yet"
        raise DivergedError(f"--lr {plan.recipe.learning_rate:g} made the loss diverge; try a lower one ({kept}).")
    return result


def _await_watts(energy: EnergyMeter) -> None:
    """See that the sensor says something: a cap on joules that nobody counts would hold nothing.

    Raises:
        InputError: it does not.
    """
    assert energy.source is not None
    deadline = time.monotonic() + _ANSWERS_WITHIN_S
    while energy.watts is None:
        if time.monotonic() > deadline:
            raise InputError(
                f"--energy can't be held here: the sensor {energy.source.name} gives no watts; add --power with the"
                " watts drawn."
            )
        time.sleep(_LOOK_EVERY_S)


class _Ended(NamedTuple):
    """A sitting's loop, and how it ended."""

    loop: Loop
    stopped_by: schema.StoppedBy
    throttled: bool | None
    warnings: list[str]


def _train(
    plan: Plan, folder: RunFolder, sitting: _Sitting, energy: EnergyMeter, window: Window, *, resume: bool
) -> _Ended:
    display = Display(plan, sitting.quiet)  # now: what it imports belongs to the bare process
    settle_allocators(plan)
    try:
        starter = import_module(_STARTERS[plan.engine])  # now: imports belong to the bare process
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or plan.engine, plan.engine, f"fit --engine {plan.engine}") from None
    device = starter.device_memory(plan, folder) if plan.engine == "torch" else None  # the other engine has none
    memory = PeakMeter.start(
        lambda: starter.warm_up(plan),
        children=plan.workers > 0 or starter.starts_processes(plan, folder),
        shared_folders=[folder.path],
        device=device,
    )
    with ExitStack() as at_the_end:
        at_the_end.callback(memory.stop)
        warnings = [*check_room(plan, memory), *files_in_memory(plan, memory)]
        train_images, val_images = _loaders(plan)
        beyond = beyond_plan(plan, memory, (train_images, val_images))
        warnings += beyond.warnings
        with _reading(plan):
            engine, train, val = starter.start_engine(plan, folder, train_images, val_images, resume=resume)
        at_the_end.callback(val.close)
        at_the_end.callback(train.close)
        release_free_memory()  # reading weights left holes that no step fits into
        # where the accelerator's memory is the machine's own, what is free of it is known already, without page cache
        room_bytes = engine.device_room_bytes if device is None or not device.unified else lambda: None
        throttle_before = read_throttle(sitting.system)
        with _interruptible() as interrupted, display:
            if energy.source is not None and sitting.power_w is None:  # a user's constant knows no idle
                energy.idle_w = _profiled_idle_w(folder, energy.source) or _idle_w(energy, energy.source)
            meters = Meters(
                memory,
                energy,
                window,
                sitting.started,
                pressure=lambda: read_pressure(sitting.system)._replace(device_room_bytes=room_bytes()),
                throttle=lambda: read_throttle(sitting.system),
            )
            loop = Loop(plan, engine, train, val, folder, meters, display, interrupted, sitting.save_every_s)
            if resume:
                with _reading(plan):
                    loop.resume()
                _note_engine(folder, plan)
            loop.knobs.make_room(beyond.process_bytes, beyond.images_bytes, (train, val))
            warnings += _hold_to_charge(loop, sitting.system, energy.source)
            stopped_by = loop.run()
            if stopped_by in ("time", "energy") and loop.progress.step >= plan.total_steps:
                stopped_by = "epochs"  # the plan foresaw where the cap would end it
            changes = delta(throttle_before, read_throttle(sitting.system))
        warnings += [*memory.warnings, *train.warnings, *val.warnings]
        if stopped_by in ("epochs", "patience"):
            folder.delete_features()
        return _Ended(loop, stopped_by, throttled(changes), warnings)


def _note_engine(folder: RunFolder, plan: Plan) -> None:
    """Write down who goes on, now that it could: a run that another engine can't take up stays its first one's."""
    kept = schema.load(folder.plan, Plan)
    if kept.engine != plan.engine:
        schema.save(msgspec.structs.replace(kept, engine=plan.engine), folder.plan)


def _read_board(root: Path | None, power_w: float | None) -> Profile:
    from edgetune.profile import profile_device

    return profile_device(root=root, power_w=power_w, probes=False)


def _hold_to_charge(loop: Loop, system: System, source: PowerSource | None) -> list[str]:
    """On battery the charge left is a cap too: a checkpoint is worth nothing to a machine that went dark over it."""
    most_j = spendable_j(system)
    if most_j is None or not loop.hold_to_charge(most_j):
        return []
    held = format_energy(most_j / CHARGE_SHARE)
    found = [f"the battery holds {held}; the run will not take more than {format_energy(most_j)} of it."]
    if source is not None and source.scope in _PARTS_OF_A_MACHINE:
        found.append(
            f"{source.name} counts the joules of the {source.scope} alone, and the battery feeds the whole machine:"
            " it may be empty before as many are counted."
        )
    return found


def _loaders(plan: Plan) -> tuple[Loader, Loader]:
    """Training and validation images.

    Raises:
        InputError: the folder is not the one that was planned for.
    """
    images = scan(Path(plan.data.path), plan.seed)
    planned = (plan.data.classes, plan.data.train_images, plan.data.val_images)
    if (images.classes, len(images.train), len(images.val)) != planned:
        raise InputError(
            f"DATA {plan.data.path} has other images than the plan was made for; run `edgetune plan` again."
        )
    spec, recipe = find_spec(plan.model), plan.recipe
    common: dict[str, Any] = {"image_size": plan.image_size, "mean": spec.mean, "std": spec.std, "seed": plan.seed}
    train = Loader(
        images.train,
        batch_size=plan.batch_size,
        augment=recipe.augment,
        flip=recipe.flip,
        workers=plan.workers,
        **common,
    )
    val = Loader(images.val, batch_size=plan.micro_batch_size, augment=False, shuffle=False, **common)
    return train, val


@contextmanager
def _reading(plan: Plan) -> Iterator[None]:
    """What a run needs before its first step, in the user's words where there is no room for it."""
    try:
        with memory_errors():
            yield
    except OutOfMemoryError as error:
        raise InputError(
            f"--model {plan.model} could not be read into memory ({error}): end other programs, or plan anew with a"
            " smaller --memory."
        ) from error


def _profiled_idle_w(folder: RunFolder, source: PowerSource) -> float | None:
    """Idle watts of the profile, if they are of the same sensor."""
    power = schema.load(folder.profile, Profile).power
    return power.idle_w if power.source == source.name else None


def _idle_w(energy: EnergyMeter, source: PowerSource) -> float | None:
    """Measured now, unless the sensor is so slow that a run would have to wait for it: a profile has the time."""
    window_s = facts_of(source).interval_s or 0.0
    seconds = idle_seconds(window_s, _IDLE_S, _LONGEST_IDLE_S)
    if seconds is None:
        return None
    time.sleep(window_s)  # or it would still show the start of the process
    return energy.idle(seconds)


def _report(folder: RunFolder) -> None:
    from edgetune.report import write_report

    write_report(folder.path)


def _result(
    loop: Loop,
    stopped_by: schema.StoppedBy,
    source: PowerSource | None,
    throttled_: bool | None,
    warnings: list[str],
) -> Result:
    progress, plan = loop.progress, loop.plan
    joules, net = loop.spending.joules()
    sources = loop.spending.sources()
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
            device_peak_bytes=progress.device_peak_bytes,
        ),
        time=schema.TimeResult(
            total_s=loop.spending.seconds(), epochs_s=progress.epochs_s, eval_s=progress.eval_s, save_s=progress.save_s
        ),
        energy=schema.EnergyResult(
            cap_j=loop.governor.caps.energy_j,
            total_j=joules,
            net_j=net,
            epochs_j=progress.epochs_j,
            source=" and ".join(dict.fromkeys(name for name, _, _ in sources)) or None,
            scope=" and ".join(dict.fromkeys(scope for _, scope, _ in sources)) or None,
            measured=bool(sources) and all(measured for _, _, measured in sources),
            model=facts_of(source).model if source and not source.measured else None,
        ),
        work=schema.Work(
            images=progress.images,
            train_flops=progress.train_flops,
            trained_block_steps=progress.trained_block_steps,
            mean_keep=[
                round(kept / steps / find_spec(plan.model).at(plan.image_size).patches, 4) for kept in progress.kept_sum
            ],
            bytes_written=progress.bytes_written + progress.cache_bytes,
        ),
        throttled=throttled_,
        warnings=[*plan.warnings, *dict.fromkeys(warnings)],
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
    """The process's exit status for a run that ended this way (see docs/artifacts.md)."""
    return {"epochs": 0, "patience": 0, "user": 130, "nan": 2}.get(result.stopped_by, 4)


__all__ = ["exit_code", "fit", "resume"]
