"""The rows of a benchmark: methods by name, and recipes, which are methods under other arguments.

A recipe file is a JSON or TOML table: `{"lean": {"method": "full", "arguments": ["--memory", "900MB"]}}`.

`eager-*` is full fine-tuning as people write it in PyTorch, `timm-*` and `peft-*` are other trainers as their users run
them; everything else is `edgetune fit`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgetune.bench.records import Entry
from edgetune.errors import InputError, MissingDependencyError
from edgetune.model.spec import ViTSpec
from edgetune.plan.methods import METHOD_NAMES, find_method
from edgetune.schema import Record

TRIMMED = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}


class Peer(NamedTuple):
    """A method that is not edgetune's own trainer.

    `plan_method` is the method of edgetune whose plan says its data and rates, `packages` what it needs.
    """

    entry: Entry
    module: str
    plan_method: str
    packages: tuple[str, ...]
    baseline: bool = False  # full fine-tuning that ratios are formed with


def _peer(
    name: str, note: str, module: str, plan_method: str, *packages: str, baseline: bool = False, trimmed: bool = False
) -> Peer:
    entry = Entry(name=name, method=name, environment=TRIMMED if trimmed else {}, note=note)
    return Peer(entry, f"edgetune.bench.{module}", plan_method, packages, baseline)


PEERS = {
    peer.entry.name: peer
    for peer in (
        _peer(
            "eager-full",
            "timm's model, torch.optim.AdamW with its defaults, eager PyTorch, default malloc",
            *("eager", "full", "timm"),
            baseline=True,
        ),
        _peer(
            "eager-full-trimmed",
            "the same; glibc gives freed blocks of 128 KiB and more back, by MALLOC_… in the environment",
            *("eager", "full", "timm"),
            baseline=True,
            trimmed=True,
        ),
        _peer(
            "eager-full-fused",
            "as eager-full, with torch.optim.AdamW(fused=True)",
            *("eager", "full", "timm"),
            baseline=True,
        ),
        _peer(
            "timm-checkpoint",
            "as eager-full, with timm's set_grad_checkpointing(): every block runs again in the backward pass",
            *("eager", "full", "timm"),
        ),
        _peer(
            "timm-adamw8bit",
            "as eager-full, with torchao's AdamW8bit, which compiles itself in its first steps",
            *("eager", "full", "timm", "torchao"),
        ),
        _peer(
            "peft-lora",
            "transformers' Trainer with its defaults, PEFT LoRA of rank 8 on qkv and proj, timm's model",
            *("trainer", "lora", "timm", "transformers", "peft", "accelerate"),
        ),
        _peer(
            "peft-lorafa",
            "the same with PEFT's LoRA-FA optimizer",
            *("trainer", "lora", "timm", "transformers", "peft", "accelerate"),
        ),
    )
}
# Words that stand for several methods.
GROUPS = {
    "ours": ("edgetune", "full", "checkpoint", "head", "last-4", "lora", "alast", "alast-lora", "random-k"),
    "peers": tuple(PEERS),
}
GROUPS["all"] = (*GROUPS["peers"], *GROUPS["ours"])
# What a child must not inherit, or "default malloc" would be somebody's choice.
MALLOC_VARIABLES = (*TRIMMED, "MALLOC_ARENA_MAX", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
DEFAULT_METHODS = ("eager-full", "eager-full-trimmed", "full", "alast", "edgetune")
# What every method of a benchmark has in common, or the benchmark itself decides.
_SHARED_FLAGS = frozenset(
    (
        *("--model", "--weights", "--image-size", "--epochs", "--threads", "--seed", "--device", "--method", "--out"),
        *("--evaluate-every", "--patience", "--time", "--energy", "--resume", "--plan", "--config", "--dry-run"),
        *("--evaluate-steps", "--power", "--root", "--workers", "--batch-size"),
        *("--augment", "--no-augment", "--flip", "--no-flip"),
    )
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}")  # also a folder's name


class _Recipe(Record, frozen=True, forbid_unknown_fields=True):
    """An entry of a recipe file."""

    method: str = "edgetune"
    arguments: tuple[str, ...] = ()
    note: str | None = None


def find_entries(methods: Sequence[str] | None, recipes: dict[str, Entry], spec: ViTSpec) -> list[Entry]:
    """The rows to run.

    Args:
        methods: their names; None for the usual ones and all of the recipes. `ours`, `peers` and `all` stand for
            several; of those, what is not installed or not possible with this model is left out.
        recipes: entries of a recipe file by name; they win over a method of the same name.
        spec: the model, whose depth `last-K` must respect.

    Raises:
        InputError: a name is unknown or given twice.
        MissingDependencyError: a peer is wanted by name and a package it needs is not installed.
    """
    if methods is None:
        names = list(dict.fromkeys([*DEFAULT_METHODS, *recipes]))
    else:
        names = _spelled_out([name.strip() for name in methods], spec)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--methods names {', '.join(twice)} twice; drop one.")
    entries = [
        recipes.get(name) or (PEERS[name].entry if name in PEERS else Entry(name=name, method=name)) for name in names
    ]
    for entry in entries:
        _check_method(entry, spec, recipes)
    if not entries:
        raise InputError(f"--methods is empty; {','.join(DEFAULT_METHODS)} is the default.")
    for entry in entries:
        missing = _missing(PEERS[entry.method]) if is_peer(entry) else None
        if missing:
            raise MissingDependencyError(missing, "bench", f"comparing with {entry.name}")
    return entries


def _spelled_out(names: Sequence[str], spec: ViTSpec) -> list[str]:
    """Names with the words for groups replaced; a method that was also named by itself stands there alone."""
    found: list[str] = []
    for name in names:
        if name not in GROUPS:
            found.append(name)
            continue
        possible = [
            member
            for member in GROUPS[name]
            if (_missing(PEERS[member]) is None if member in PEERS else _fits(member, spec))
        ]
        found += [member for member in possible if member not in found and member not in names]
    return found


def _missing(peer: Peer) -> str | None:
    """The first package a peer needs that is not installed."""
    return next((package for package in peer.packages if importlib.util.find_spec(package) is None), None)


def _fits(method: str, spec: ViTSpec) -> bool:
    try:
        find_method(method, spec.depth)
    except InputError:
        return False
    return True


def read_recipes(path: Path) -> dict[str, Entry]:
    """The entries of a recipe file, by name.

    Raises:
        InputError: the file can't be read, is not such a table, or an entry sets what all methods share.
    """
    try:
        raw = path.read_bytes()
        decode = msgspec.toml.decode if path.suffix == ".toml" else msgspec.json.decode
        found = decode(raw, type=dict[str, _Recipe])
    except OSError as error:
        raise InputError(f"--recipe {path} can't be read ({error.strerror}); check the path.") from None
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise InputError(
            f'--recipe {path} is not a table of entries like "lean": {{"method": "full", "arguments": []}} ({error}).'
        ) from None
    entries = {}
    for name, recipe in found.items():
        if not _NAME.fullmatch(name):
            raise InputError(f"--recipe {path}: {name!r} is no name; use letters, digits, dots and dashes, up to 40.")
        taken = [word for word in recipe.arguments if word.partition("=")[0] in _SHARED_FLAGS]
        if taken:
            raise InputError(f"--recipe {path}: {name} sets {taken[0]}, which all methods share; leave it out.")
        peer = PEERS.get(recipe.method)
        strange = [word for word in recipe.arguments if word.startswith("--") and word.partition("=")[0] != "--lr"]
        if peer and strange:
            raise InputError(f"--recipe {path}: {name} sets {strange[0]}, but {recipe.method} takes --lr alone.")
        entries[name] = Entry(
            name=name,
            method=recipe.method,
            arguments=recipe.arguments,
            environment=peer.entry.environment if peer else {},
            note=recipe.note or (peer.entry.note if peer else None),
        )
    return entries


def is_eager(entry: Entry) -> bool:
    """Whether this row is full fine-tuning in plain PyTorch, which ratios are formed with."""
    return entry.method in PEERS and PEERS[entry.method].baseline


def is_peer(entry: Entry) -> bool:
    """Whether this row is somebody else's trainer and not `edgetune fit`."""
    return entry.method in PEERS


def _check_method(entry: Entry, spec: ViTSpec, recipes: dict[str, Entry]) -> None:
    if is_peer(entry):
        return
    try:
        find_method(entry.method, spec.depth)
    except InputError:
        where = f"--recipe: {entry.name} has the method {entry.method}" if entry.name in recipes else "--methods"
        known = ", ".join((*PEERS, *METHOD_NAMES, *GROUPS, *recipes))
        what = "which is unknown here" if entry.name in recipes else f"{entry.name or 'with an empty name'} is unknown"
        raise InputError(
            f"{where}{',' if entry.name in recipes else ''} {what}; use {known} (last-1 to last-{spec.depth})."
        ) from None
