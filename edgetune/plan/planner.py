"""`make_plan`: from data, model, profile and caps to a plan, or to the nearest caps that would admit one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgetune import schema
from edgetune.__about__ import __version__
from edgetune.data.folder import mean_file_bytes, scan
from edgetune.device.power.battery import spendable_j
from edgetune.device.system import System
from edgetune.errors import InputError
from edgetune.model.header import WeightsMetadata, read_header
from edgetune.model.registry import find_spec
from edgetune.model.spec import ViTSpec
from edgetune.plan.cache import disk_room, fit_to_disk, planned_cache
from edgetune.plan.cost import predict, step_parts
from edgetune.plan.engines import candidates, method_under
from edgetune.plan.machine import default_workers, memory_cap, read_machine
from edgetune.plan.methods import DEFAULT_EPOCHS, REFERENCE_BATCH, Method
from edgetune.plan.reasons import Decisions, infeasible, spare, why
from edgetune.plan.search import Choice, Limits, Problem, search
from edgetune.plan.tradeoff import tradeoff
from edgetune.schema import Caps, DataFacts, Device, Plan, Profile, Recipe


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
    evaluate_steps: int | None = None,
    augment: bool = True,
    flip: bool = True,
    levers: Sequence[str] = (),
    seed: int = 0,
    elsewhere: bool = False,
    sensors: System | None = None,
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
        engine: "auto", "torch" or "onnx"; "auto" takes ONNX where torch is missing, or no plan fits with it.
        device: "cpu" or "cuda".
        threads: of the arithmetic.
        workers: processes that decode images; 0 decodes in the training process. None: 0 where the CPU trains, else
            as many as cores and memory allow.
        patience: evaluations without gain that end the run.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        evaluate_steps: steps between evaluations that are only recorded, for the course of the accuracy.
        augment: train on random crops.
        flip: mirror half of them; wrong for text and digits.
        levers: levers to set by hand, `name=value`; see `edgetune.plan.levers`.
        seed: of the split, the order, the augmentation and the draw.
        elsewhere: the plan is for the board that the profile is of, which is not this one.
        sensors: where power and batteries are read, if that is below another root, as a container mounts the host's.

    Raises:
        InputError: something given can't be used.
        InfeasibleError: no plan fits the caps; carries the nearest caps that would.
    """
    between = {"--evaluate-every": evaluate_every, "--evaluate-steps": evaluate_steps}
    _check_options(epochs, batch_size, lr, threads, workers, patience, between, seed, device)
    _check_quantities(memory_bytes, energy_j, time_s, disk_bytes, power_w)
    spec = find_spec(model)
    folder = scan(Path(data), seed)
    spec = spec.at(image_size, len(folder.classes))
    evaluations = math.ceil((epochs or DEFAULT_EPOCHS) / evaluate_every)
    if evaluate_steps is not None:
        batches = math.ceil(len(folder.train) / (batch_size or REFERENCE_BATCH))
        evaluations += (epochs or DEFAULT_EPOCHS) * batches // evaluate_steps
    room_bytes = disk_room(disk_bytes)
    machine = read_machine(profile, power_w, device, threads, elsewhere=elsewhere, sensors=sensors)
    cap_bytes, cap_source = memory_cap(memory_bytes, machine.memory)
    if energy_j is not None and machine.watts is None:
        raise InputError(
            "--energy can't be held here: no power sensor or model was found; add --power with the watts drawn."
        )
    wanted_batch = batch_size or REFERENCE_BATCH
    batch = min(wanted_batch, len(folder.train))
    battery_j = None if elsewhere else spendable_j(sensors or System())
    most_j = battery_j if machine.watts is not None else None
    limits = Limits(cap_bytes, min((cap for cap in (energy_j, most_j) if cap is not None), default=None), time_s)
    found, refused = None, list[Problem]()
    for name in candidates(engine, device):
        try:
            its_method = method_under(name, method, levers, spec.depth)
        except InputError:
            if engine != "auto" or (found is None and not refused):
                raise
            break  # what was asked for by hand is torch's alone
        its_method, note = fit_to_disk(
            its_method, spec, len(folder.train), len(folder.val), evaluations, room_bytes, name
        )
        its_machine = machine.under(name)
        problem = Problem(
            method=its_method,
            spec=spec,
            batch_size=batch,
            workers=default_workers(its_machine, cap_bytes, device, spec, batch) if workers is None else workers,
            epochs=epochs or DEFAULT_EPOCHS,
            train_images=len(folder.train),
            val_images=len(folder.val),
            runtime_bytes=its_machine.runtime_bytes,
            first_use=its_machine.first_use,
            rates=its_machine.rates,
            watts=its_machine.watts,
            file_bytes=mean_file_bytes(folder.train),
            margin_bytes=its_machine.margin_bytes,
            engine=name,
            evaluations=evaluations / (epochs or DEFAULT_EPOCHS),
            hurried=limits.time_s is not None or limits.energy_j is not None,
        )
        choice = search(problem, limits)
        if choice is None:
            refused.append(problem)
            continue
        if found is None or choice.learning > found[0].learning:
            found = (choice, problem, its_machine, note)
        exact = msgspec.structs.replace(choice.setting.levers, frozen_precision=its_method.levers.frozen_precision)
        if choice.setting._replace(levers=exact) == next(problem.settings()):
            break  # the caps take away epochs at most, and no engine is known to be quicker
    if found is None:
        raise infeasible(refused, limits, battery=energy_j != limits.energy_j)
    choice, problem, machine, disk_note = found
    chosen_method = problem.method
    learning_rate = chosen_method.rate_for(batch, spec.width, choice.setting.trained) if lr is None else lr
    decisions = Decisions(
        problem=problem,
        limits=limits,
        choice=choice,
        wanted_batch=wanted_batch,
        cap_source=cap_source,
        runtime_measured=machine.runtime_measured,
        watts_source=machine.watts_source,
        time_factor=machine.time_factor,
        engine_asked=engine,
        torch_tried="torch" in candidates(engine, device),
        battery_j=most_j if choice.cost is not None else None,
        default_rate=learning_rate if lr is None else None,
    )
    levers_set = choice.job.levers
    cache = planned_cache(choice.job, len(folder.train), len(folder.val), evaluations)
    augmented = augment and (cache is None or cache.views > 1)  # one view is the plain image
    steps_per_epoch = math.ceil(len(folder.train) / batch)
    total_steps = (
        problem.epochs * steps_per_epoch  # whole numbers, however large
        if choice.epochs == problem.epochs
        else math.floor(choice.epochs * steps_per_epoch + 1e-6)
    )
    alternatives = tradeoff(problem, limits, choice)
    return Plan(
        model=model,
        weights=None if weights is None else str(Path(weights).absolute()),
        image_size=spec.image_size,
        method=method,
        engine=problem.engine,
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
        recompute_share=levers_set.recompute_share,
        saved_precision=levers_set.saved_precision,
        part_tokens=levers_set.part_tokens if problem.in_parts else None,
        feature_cache=cache,
        allocator=choice.job.allocator,
        blocks=choice.job.blocks(),
        k=choice.job.k,
        lowest_trainable_block=choice.job.lowest,
        embeddings_trainable=chosen_method.embeddings_trainable,
        epochs=-(-total_steps // steps_per_epoch),
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
            evaluate_steps=evaluate_steps,
        ),
        alast=_alast(chosen_method, choice, lr),
        lora=chosen_method.lora,
        alternatives=alternatives,
        predicted=predict(
            choice.job,
            machine.runtime_bytes,
            machine.first_use,
            choice.cost,
            machine.watts,
            choice.epochs,
            time_factor=machine.time_factor,
            margin_bytes=machine.margin_bytes,
            parts=step_parts(choice.job, machine.rates, machine.watts, problem.file_bytes) if machine.rates else (),
        ),
        why=[*why(decisions), *(spare(alternatives) if (time_s, energy_j) != (None, None) else ())],
        warnings=[*folder.warnings, *machine.warnings, *disk_note, *_other_normalisation(spec, weights)],
        edgetune_version=__version__,
        created=schema.now(),
    )


def _other_normalisation(spec: ViTSpec, weights: Path | str | None) -> list[str]:
    """A warning where a weights file says that it was trained on images prepared otherwise than this model's are."""
    if weights is None:
        return []
    try:
        found = WeightsMetadata.parse(read_header(Path(weights)).metadata)
    except (InputError, OSError):
        return []  # whoever reads the weights says what is wrong with them
    if found.mean in (None, spec.mean) and found.std in (None, spec.std):
        return []
    trained_as = f", which is {found.model}" if found.model else ""
    return [
        f"{Path(weights).name} was trained on images normalised with mean {found.mean} and deviation {found.std}, but"
        f" {spec.name} takes {spec.mean} and {spec.std}: give --model the name that the weights were trained"
        f" under{trained_as}."
    ]


def _alast(method: Method, choice: Choice, lr: float | None) -> schema.AlastPlan | None:
    if method.alast is None or not choice.job.k:
        return None
    if method.alast.mode == "reference" and lr is not None:  # its budget step is the base learning rate
        return msgspec.structs.replace(method.alast, alpha=lr)
    return method.alast


def _check_quantities(
    memory_bytes: int | None,
    energy_j: float | None,
    time_s: float | None,
    disk_bytes: int | None,
    power_w: float | None,
) -> None:
    positive = {"--memory": memory_bytes, "--energy": energy_j, "--time": time_s, "--power": power_w}
    for flag, value in positive.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{flag} {value} is not a positive number; leave it out where nothing is capped or known.")
    if disk_bytes is not None and disk_bytes < 0:
        raise InputError(f"--disk {disk_bytes} is negative; give 0 to keep nothing on disk.")


def _check_options(
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    threads: int | None,
    workers: int | None,
    patience: int | None,
    evaluations: dict[str, int | None],
    seed: int,
    device: str | Device,
) -> None:
    least_one = {"--epochs": epochs, "--batch-size": batch_size, "--threads": threads, "--patience": patience}
    for flag, value in (least_one | evaluations).items():
        if value is not None and value < 1:
            raise InputError(f"{flag} {value} is too small; give 1 or more.")
    for flag, value in {"--workers": workers, "--seed": seed}.items():
        if value is not None and value < 0:
            raise InputError(f"{flag} {value} is negative; give 0 or more.")
    if lr is not None and not (0 < lr < math.inf):
        raise InputError(f"--lr {lr} is not a positive number; 1e-4 is a usual one.")
    if device not in ("cpu", "cuda"):
        raise InputError(f"--device {device} is unknown; use cpu or cuda.")
