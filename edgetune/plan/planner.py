"""`make_plan`: from data, model, profile and caps to a plan, or to the nearest caps that would admit one."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgetune import schema
from edgetune.__about__ import __version__
from edgetune.data.folder import scan
from edgetune.device.memory import read_memory, usable_bytes
from edgetune.device.system import System
from edgetune.errors import InfeasibleError, InputError
from edgetune.model.registry import find_spec
from edgetune.model.spec import ViTSpec
from edgetune.plan.cache import fit_to_disk, planned_cache
from edgetune.plan.cost import Rates, predict, watts_of
from edgetune.plan.explain import Decisions, infeasible_sentence, why
from edgetune.plan.methods import DEFAULT_EPOCHS, REFERENCE_BATCH, Method, find_method, with_levers
from edgetune.plan.search import Choice, Limits, Problem, nearest_feasible, search
from edgetune.schema import Caps, DataFacts, Device, Memory, Plan, Power, Profile, Recipe

DEFAULT_SHARE = 0.9  # of what may really be used, for a cap nobody named

# Resident memory of a bare training process, where no profile measured it. The first holds CUDA's libraries.
_RUNTIME_CUDA_BYTES, _RUNTIME_CPU_BYTES = 540 << 20, 420 << 20


def make_plan(
    data: Path | str,
    *,
    model: str,
    weights: Path | str | None = None,
    profile: Profile | None = None,
    memory_bytes: int | None = None,
    energy_j: float | None = None,
    time_s: float | None = None,
    disk_bytes: int | None = None,
    power_w: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    lr: float | None = None,
    method: str = "edgetune",
    engine: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    workers: int | None = None,
    patience: int | None = None,
    evaluate_every: int = 1,
    augment: bool = True,
    flip: bool = True,
    levers: Sequence[str] = (),
    seed: int = 0,
) -> Plan:
    """Say what a run would do, what it would cost and why; trains nothing and opens no image.

    Args:
        data: an image folder; its listing is read, its images are not.
        model: timm name of a plain ViT.
        weights: a `.safetensors` file; None: the bundled or the hub's.
        profile: of this machine; without one, seconds and joules are unknown and the bare process is guessed.
        memory_bytes: cap for the whole process tree; None: 0.9 of what may be used now.
        energy_j: cap in joules for the whole run.
        time_s: cap in seconds for the whole run.
        disk_bytes: cap for cached features; None: a quarter of what is free.
        power_w: what the machine draws while training, where no sensor says.
        epochs: wanted epochs; fewer are planned where energy or time allow no more.
        batch_size: images per optimizer step.
        image_size: side in pixels.
        lr: learning rate.
        method: see `edgetune.plan.methods`.
        engine: "auto" or "torch".
        device: "cpu" or "cuda".
        threads: of the arithmetic.
        workers: processes that decode images; 0 decodes in the training process. None: 0 where the CPU trains, else
            as many as cores and memory allow.
        patience: evaluations without gain that end the run.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        augment: train on random crops.
        flip: mirror half of them; wrong for text and digits.
        levers: levers to set by hand, `name=value`; see `edgetune.plan.levers`.
        seed: of the split, the order, the augmentation and the draw.

    Raises:
        InputError: something given can't be used.
        InfeasibleError: no plan fits the caps; carries the nearest caps that would.
    """
    _check_options(epochs, batch_size, lr, threads, workers, patience, evaluate_every, seed, engine, device)
    spec = find_spec(model)
    folder = scan(Path(data), seed)
    spec = spec.at(image_size, len(folder.classes))
    chosen_method = with_levers(find_method(method, spec.depth), levers, spec.depth)
    evaluations = math.ceil((epochs or DEFAULT_EPOCHS) / evaluate_every)
    room_bytes = _disk_room(disk_bytes)
    chosen_method, disk_note = fit_to_disk(
        chosen_method, spec, len(folder.train), len(folder.val), evaluations, room_bytes
    )
    machine = _machine(profile, power_w, device)
    cap_bytes, cap_source = _memory_cap(memory_bytes, machine.memory)
    if energy_j is not None and machine.watts is None:
        raise InputError(
            "--energy can't be held here: no power sensor or model was found; add --power with the watts drawn."
        )
    wanted_batch = batch_size or REFERENCE_BATCH
    batch = min(wanted_batch, len(folder.train))
    problem = Problem(
        method=chosen_method,
        spec=spec,
        batch_size=batch,
        workers=_default_workers(machine, cap_bytes, device, spec, batch) if workers is None else workers,
        epochs=epochs or DEFAULT_EPOCHS,
        train_images=len(folder.train),
        val_images=len(folder.val),
        runtime_bytes=machine.runtime_bytes,
        rates=machine.rates,
        watts=machine.watts,
    )
    limits = Limits(cap_bytes, energy_j, time_s)
    choice = search(problem, limits)
    if choice is None:
        nearest = nearest_feasible(problem, limits)
        raise InfeasibleError(infeasible_sentence(problem, limits, nearest), nearest)
    decisions = Decisions(
        problem=problem,
        limits=limits,
        choice=choice,
        wanted_batch=wanted_batch,
        cap_source=cap_source,
        runtime_measured=machine.runtime_measured,
        watts_source=machine.watts_source,
    )
    levers_set = choice.job.levers
    cache = planned_cache(choice.job, len(folder.train), len(folder.val), evaluations)
    augmented = augment and (cache is None or cache.views > 1)  # one view is the plain image
    steps_per_epoch = math.ceil(len(folder.train) / batch)
    total_steps = math.floor(choice.epochs * steps_per_epoch + 1e-6)
    learning_rate = lr if lr is not None else chosen_method.rate_for(batch)
    return Plan(
        model=model,
        weights=None if weights is None else str(Path(weights).absolute()),
        image_size=spec.image_size,
        method=method,
        engine="torch",
        device="cuda" if device == "cuda" else "cpu",
        threads=threads or machine.threads,
        workers=problem.workers,
        seed=seed,
        power_w=power_w,
        data=DataFacts(
            path=str(Path(data).absolute()),
            classes=list(folder.classes),
            train_images=len(folder.train),
            val_images=len(folder.val),
            split=folder.split,
        ),
        caps=Caps(
            memory_bytes=cap_bytes, memory_source=cap_source, energy_j=energy_j, time_s=time_s, disk_bytes=disk_bytes
        ),
        batch_size=batch,
        micro_batch_size=choice.job.micro_batch_size,
        precision=levers_set.precision,
        trainer=levers_set.trainer,
        frozen_precision=levers_set.frozen_precision,
        frozen_weights=levers_set.frozen_weights,
        optimizer=levers_set.optimizer,
        optimizer_state=levers_set.optimizer_state,
        saved_activations=levers_set.saved_activations,
        saved_precision=levers_set.saved_precision,
        part_tokens=levers_set.part_tokens,
        feature_cache=cache,
        allocator=choice.job.allocator,
        blocks=choice.job.blocks(),
        k=choice.job.k,
        lowest_trainable_block=choice.job.lowest,
        embeddings_trainable=chosen_method.embeddings_trainable,
        epochs=math.ceil(total_steps / steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        wanted_epochs=problem.epochs,
        recipe=Recipe(
            learning_rate=learning_rate,
            weight_decay=chosen_method.weight_decay,
            warmup_steps=chosen_method.warm_up(total_steps),
            schedule=chosen_method.schedule,
            label_smoothing=chosen_method.label_smoothing,
            augment=augmented,
            flip=augmented and flip,
            patience=patience,
            evaluate_every=evaluate_every,
        ),
        alast=_alast(chosen_method, choice, lr),
        lora=chosen_method.lora,
        predicted=predict(choice.job, machine.runtime_bytes, choice.cost, machine.watts, choice.epochs),
        why=why(decisions),
        warnings=[*folder.warnings, *machine.warnings, *disk_note],
        edgetune_version=__version__,
        created=schema.now(),
    )


def _disk_room(asked_bytes: int | None) -> int:
    """Disk that cached features may take: as asked, else a quarter of what is free here."""
    return asked_bytes if asked_bytes is not None else shutil.disk_usage(Path.cwd()).free // 4


class _Machine(NamedTuple):
    """What planning needs to know of the machine."""

    memory: Memory
    runtime_bytes: int
    runtime_measured: bool
    rates: Rates | None
    watts: float | None
    watts_source: str | None
    threads: int
    warnings: list[str]


def _machine(profile: Profile | None, power_w: float | None, device: str) -> _Machine:
    system = System()
    warnings: list[str] = []
    power: Power | None = None
    if profile is None:
        memory, power = read_memory(system), _live_power(system)
        warnings.append(
            "no --profile was given: time and energy are not predicted and the bare process's memory is a guess"
            " (run `edgetune profile --out profile.json` once)."
        )
    else:
        memory, power = _memory_now(profile, system), profile.power
        if profile.compute.probe_error:
            warnings.append(f"the profile has no probes ({profile.compute.probe_error})")
    compute = profile.compute if profile is not None else None
    if compute is not None and compute.device is not None and compute.device != device:
        warnings.append(
            f"the profile's probes ran on {compute.device}, the plan is for {device}: times may be far off."
        )
    measured = compute.runtime_bytes if compute is not None else None
    rates = Rates(compute) if compute is not None else None
    if rates is not None and rates.known and rates.guessed:
        warnings.append(
            "the profile timed no transformer block: times are guessed from its matrix product, within a factor of 2."
        )
    watts = watts_of(power, compute, power_w)
    source = "--power" if power_w is not None else (power.source or power.model) if power is not None else None
    cores = os.cpu_count() or 1
    return _Machine(
        memory=memory,
        runtime_bytes=measured if measured is not None else _guessed_runtime_bytes(),
        runtime_measured=measured is not None,
        rates=rates,
        watts=watts,
        watts_source=source if watts is not None else None,
        threads=(compute.threads if compute is not None else None) or _usable_cores() or cores,
        warnings=warnings,
    )


def _memory_now(profile: Profile, system: System) -> Memory:
    """Memory as it is now when the profile is of this machine, else as the profile found it."""
    live = read_memory(system)
    return live if live.total_bytes is not None and live.total_bytes == profile.memory.total_bytes else profile.memory


def _live_power(system: System) -> Power | None:
    from edgetune.device.board import identify_entry
    from edgetune.device.power import close_power, describe_power, find_power

    board, entry = identify_entry(system)
    source = find_power(system, board, entry)
    power = describe_power(system, source, entry) if source is not None else None
    close_power(source)
    return power


def _usable_cores() -> int | None:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return None


def _guessed_runtime_bytes() -> int:
    """What a bare process takes: more where the installed torch brings CUDA's libraries."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return _RUNTIME_CPU_BYTES
    if "+cpu" in version:
        return _RUNTIME_CPU_BYTES
    carries_cuda = any(name.startswith("nvidia-") for name in metadata.requires("torch") or [])
    return _RUNTIME_CUDA_BYTES if carries_cuda or "+cu" in version else _RUNTIME_CPU_BYTES


def _memory_cap(asked_bytes: int | None, memory: Memory) -> tuple[int | None, str | None]:
    if asked_bytes is not None:
        return asked_bytes, "--memory"
    usable = usable_bytes(memory)
    if usable is None:
        return None, None
    by_group = memory.limit_room_bytes is not None and memory.limit_room_bytes == usable
    reason = f"the room that {memory.limit_source} leaves" if by_group else "available memory"
    return int(DEFAULT_SHARE * usable), f"{DEFAULT_SHARE:g} of {reason}"


def _default_workers(machine: _Machine, cap_bytes: int | None, device: str, spec: ViTSpec, batch_size: int) -> int:
    """None where the processor itself trains: its threads keep every core busy. A GPU is fed as memory allows."""
    if device == "cpu" or cap_bytes is None:
        return 0
    from edgetune.data.loader import default_workers

    room = cap_bytes - machine.runtime_bytes
    return default_workers(room, _usable_cores() or 1, 3 * spec.image_size**2 * batch_size)


def _alast(method: Method, choice: Choice, lr: float | None) -> schema.AlastPlan | None:
    if method.alast is None or not choice.job.k:
        return None
    if method.alast.mode == "reference" and lr is not None:  # its budget step is the base learning rate
        return msgspec.structs.replace(method.alast, alpha=lr)
    return method.alast


def _check_options(
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    threads: int | None,
    workers: int | None,
    patience: int | None,
    evaluate_every: int,
    seed: int,
    engine: str,
    device: str | Device,
) -> None:
    least_one = {"--epochs": epochs, "--batch-size": batch_size, "--threads": threads, "--patience": patience}
    least_one["--evaluate-every"] = evaluate_every
    for flag, value in least_one.items():
        if value is not None and value < 1:
            raise InputError(f"{flag} {value} is too small; give 1 or more.")
    for flag, value in {"--workers": workers, "--seed": seed}.items():
        if value is not None and value < 0:
            raise InputError(f"{flag} {value} is negative; give 0 or more.")
    if lr is not None and not (0 < lr < math.inf):
        raise InputError(f"--lr {lr} is not a positive number; 1e-4 is a usual one.")
    if engine not in ("auto", "torch"):
        raise InputError(f"--engine {engine} is not available in this version; use auto or torch.")
    if device not in ("cpu", "cuda"):
        raise InputError(f"--device {device} is unknown; use cpu or cuda.")
