"""The rest of the page: the plan's reasons and settings, the machine, events and warnings, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from edgetune.report.markup import Child, Html, count, element, join, note, section, table
from edgetune.report.run import Run
from edgetune.schema import FeatureCachePlan, Plan
from edgetune.units import format_duration, format_energy, format_power, format_rate, format_size

_MOST_WARNINGS = 100
_TRAINERS = {"lean": "lean: blocks with a backward pass of their own", "autograd": "torch's autograd"}
_OPTIMIZERS = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD with momentum", "sgd-plain": "SGD without momentum"}
_STATES = {"fp32": "fp32", "int8": "8 bits", "factored": "8 bits, second moments by rows and columns"}


def why(plan: Plan) -> Html:
    """The plan's reasons and its settings."""
    reasons = (
        element("ul", *(element("li", sentence) for sentence in plan.why), class_="why")
        if plan.why
        else note("The plan gives no reasons.")
    )
    recipe, alast, lora = plan.recipe, plan.alast, plan.lora
    settings: list[tuple[str, Child]] = [
        ("method", plan.method),
        ("weights", plan.weights or "by the model's name"),
        ("batch", f"{plan.batch_size}, in passes of {plan.micro_batch_size}"),
        ("steps", _steps(plan)),
        ("trainer", _TRAINERS[plan.trainer]),
        ("matrix products", plan.precision),
        ("frozen weights", _frozen(plan)),
        ("optimizer", _OPTIMIZERS[plan.optimizer]),
        ("optimizer state", _optimizer_state(plan)),
        ("learning rate", f"{recipe.learning_rate:g}, {recipe.schedule}, {recipe.warmup_steps} warm-up steps"),
        ("weight decay", f"{recipe.weight_decay:g}"),
        ("label smoothing", f"{recipe.label_smoothing:g}"),
        ("augmentation", _augmentation(plan)),
        ("patience", f"{recipe.patience} epochs" if recipe.patience is not None else "none"),
        ("activations", _saved(plan)),
        ("feature cache", _feature_cache(plan.feature_cache)),
        ("adaptive layers", f"{alast.mode}, K = {plan.k}, draw {alast.draw}, α = {alast.alpha:g}" if alast else "off"),
        ("LoRA", f"rank {lora.rank}, α = {lora.alpha:g}" if lora else "off"),
        ("threads, workers", f"{plan.threads}, {plan.workers}"),
        ("seed", str(plan.seed)),
        ("memory cap", format_size(plan.caps.memory_bytes)),
        ("energy cap", format_energy(plan.caps.energy_j)),
        ("time cap", format_duration(plan.caps.time_s)),
        ("disk cap", format_size(plan.caps.disk_bytes)),
    ]
    return section("Why this plan", reasons, _facts("All settings", settings), id="why")


def _augmentation(plan: Plan) -> str:
    recipe, cache = plan.recipe, plan.feature_cache
    if not recipe.augment or (cache is not None and cache.views == 1):  # the first view is the plain image
        return "none"
    made = "crop and flip" if recipe.flip else "crop"
    return made if cache is None else f"{made}, of {cache.views - 1:,} of {cache.views:,} views"


def _steps(plan: Plan) -> str:
    if plan.total_steps < plan.steps_per_epoch:
        return f"{plan.total_steps:,} of an epoch's {plan.steps_per_epoch:,}"
    return f"{plan.total_steps:,}: {plan.epochs} epoch{'s' * (plan.epochs > 1)} of {plan.steps_per_epoch:,}"


def _frozen(plan: Plan) -> str:
    if plan.lowest_trainable_block == 0:
        return "none"
    kept = "on disk, read as they are passed" if plan.frozen_weights == "disk" else f"in memory, {plan.frozen_weights}"
    return f"{kept}; matrix products {'bf16' if 'bf16' in (plan.precision, plan.frozen_precision) else 'fp32'}"


def _optimizer_state(plan: Plan) -> str:
    return "none" if plan.optimizer == "sgd-plain" else _STATES[plan.optimizer_state]


def _saved(plan: Plan) -> str:
    if plan.saved_activations == "recompute":
        again = sum(block.recomputed for block in plan.blocks)
        some = "" if plan.recompute_share == 1 else f" in {again} blocks"
        return f"recomputed in the backward pass from saved inputs{some}, {plan.saved_precision}"
    return f"saved, {plan.saved_precision}"


def _feature_cache(cache: FeatureCachePlan | None) -> str:
    if cache is None:
        return "off"
    views = "1 view" if cache.views == 1 else f"{cache.views:,} views of each"
    val = f" and {format_size(cache.val_bytes)} of validation images" if cache.val_bytes else ""
    return (
        f"{cache.precision}, {cache.tokens:,} tokens an image, {views}; {format_size(cache.train_bytes)} on disk"
        f" of training images{val}"
    )


def _facts(title: str, pairs: Iterable[tuple[str, Child]]) -> Html:
    rows = join(element("div", element("dt", name), element("dd", value)) for name, value in pairs)
    return element("details", element("summary", title), element("dl", rows))


def machine(run: Run) -> Html:
    """The board and what was found on it."""
    profile = run.profile
    if profile is None:
        return section("The machine", note("The run folder has no readable profile.json."), id="machine")
    board, memory, power, compute = profile.board, profile.memory, profile.power, profile.compute
    gemm = ", ".join(f"{name} {format_rate(rate, 'FLOP')}" for name, rate in compute.gemm_flops.items())
    limit = (
        f"{format_size(memory.limit_bytes)} ({memory.limit_source or 'source unknown'})"
        if memory.limit_bytes is not None
        else "none"
    )
    sensor = (
        "none"
        if power.source is None
        else f"{power.source}, scope {power.scope or 'unknown'}, {'measured' if power.measured else 'modelled'}"
    )
    rows: list[list[Child]] = [
        ["board", ", ".join(part for part in (board.name, board.module, board.soc) if part)],
        ["system", ", ".join(part for part in (board.os, board.jetpack, board.arch) if part) or "—"],
        ["memory", f"{format_size(memory.total_bytes)}, {format_size(memory.available_bytes)} available"],
        ["memory limit", limit],
        ["swap", format_size(memory.swap_bytes)],
        ["power sensor", sensor],
        ["idle power", format_power(power.idle_w)],
        ["power mode", profile.modes.current or "—"],
        [
            "engine",
            f"{compute.engine or '—'} {compute.engine_version or ''} on {compute.device or '—'},"
            f" {count(compute.threads)} threads",
        ],
        ["matrix products", gemm or "—"],
        ["copies", format_rate(compute.copy_bytes_per_s, "B")],
    ]
    return section("The machine", table(["", "as profiled"], rows, numbers_from=9), id="machine")


def events_and_warnings(run: Run) -> Html | None:
    """What happened while training and what to be wary of."""
    metrics, children = run.metrics, list[Html]()
    if metrics.events:
        rows: list[list[Child]] = [[count(event.step), event.name, event.message] for event in metrics.events]
        written = table(["step", "event", "what happened"], rows, numbers_from=9)
        left = (
            note(f"{metrics.events_left_out:,} later events are left out; metrics.jsonl has them.")
            if metrics.events_left_out
            else None
        )
        children += [
            element("h3", "Events"),
            written if len(rows) <= 20 else _closed(f"All {len(rows)} events", written),
            join([left]),
        ]
    warnings = list(
        dict.fromkeys(
            [
                *run.plan.warnings,
                *(run.profile.warnings if run.profile else []),
                *(run.result.warnings if run.result else []),
            ]
        )
    )
    if metrics.unreadable_lines:
        warnings.append(f"{metrics.unreadable_lines:,} lines of metrics.jsonl could not be read and are left out.")
    if warnings:
        shown = [element("li", sentence) for sentence in warnings[:_MOST_WARNINGS]]
        if len(warnings) > _MOST_WARNINGS:
            shown.append(element("li", f"… and {len(warnings) - _MOST_WARNINGS:,} more."))
        children += [element("h3", "Warnings"), element("ul", *shown, class_="why")]
    return section("Events and warnings", *children, id="events") if children else None


def _closed(title: str, content: Html) -> Html:
    return element("details", element("summary", title), content)


def commands(run: Run) -> Html:
    """What to type next, ready to copy."""
    folder, data = shlex.quote(str(run.path)), shlex.quote(run.plan.data.path)
    lines: list[tuple[str, str]] = []
    if (run.result is None or run.result.stopped_by == "user") and (run.path / "state").exists():
        lines.append(("Go on where it stopped", f"edgetune fit --resume --out {folder}"))
    if (run.path / "best.safetensors").exists():
        onnx, timm = (shlex.quote(str(run.path / name)) for name in ("model.onnx", "timm"))
        lines += [
            ("Evaluate the best checkpoint", f"edgetune evaluate {folder} {data}"),
            ("Classify an image", f"edgetune predict {folder} IMAGE"),
            ("Export to ONNX", f"edgetune export {folder} --format onnx --out {onnx}"),
            ("Export for timm", f"edgetune export {folder} --format timm --out {timm}"),
        ]
    plan = shlex.quote(str(run.path / "plan.json"))
    lines.append(("Train again by the same plan", f"edgetune fit {data} --plan {plan} --out NEW_FOLDER"))
    written = [element("div", element("h3", name), element("pre", element("code", line))) for name, line in lines]
    return section("What to type next", *written, id="commands")
