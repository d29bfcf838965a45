"""The rows of a benchmark: methods by name, and recipes, which are methods under other arguments.

A recipe file is a JSON or TOML table: `{"lean": {"method": "full", "arguments": ["--memory", "900MB"]}}`.

`eager-*` is full fine-tuning as people write it in PyTorch (`edgetune.bench.eager`); everything else is `edgetune fit`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgetune.bench.records import Entry
from edgetune.errors import InputError, MissingDependencyError
from edgetune.model.spec import ViTSpec
from edgetune.plan.methods import METHOD_NAMES, find_method
from edgetune.schema import Record

_TRIMMED = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
EAGER = {
    entry.name: entry
    for entry in (
        Entry(
            name="eager-full",
            method="eager-full",
            note="timm's model, torch.optim.AdamW with its defaults, eager PyTorch, default malloc",
        ),
        Entry(
            name="eager-full-trimmed",
            method="eager-full-trimmed",
            environment=_TRIMMED,
            note="the same; glibc gives freed blocks of 128 KiB and more back, by MALLOC_… in the environment",
        ),
        Entry(
            name="eager-full-fused",
            method="eager-full-fused",
            note="as eager-full, with torch.optim.AdamW(fused=True)",
        ),
    )
}
# What a child must not inherit, or "default malloc" would be somebody's choice.
MALLOC_VARIABLES = (*_TRIMMED, "MALLOC_ARENA_MAX", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
DEFAULT_METHODS = ("eager-full", "eager-full-trimmed", "full", "alast", "edgetune")
# What every method of a benchmark has in common, or the benchmark itself decides.
_SHARED_FLAGS = frozenset(
    (
        *("--model", "--weights", "--image-size", "--epochs", "--threads", "--seed", "--device", "--method", "--out"),
        *("--evaluate-every", "--patience", "--time", "--energy", "--resume", "--plan", "--config", "--dry-run"),
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
        methods: their names; None for the usual ones and all of the recipes.
        recipes: entries of a recipe file by name; they win over a method of the same name.
        spec: the model, whose depth `last-K` must respect.

    Raises:
        InputError: a name is unknown or given twice.
        MissingDependencyError: an eager method is wanted and timm is not installed.
    """
    names = [*DEFAULT_METHODS, *recipes] if methods is None else [name.strip() for name in methods]
    if methods is None:
        names = list(dict.fromkeys(names))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--methods names {', '.join(twice)} twice; drop one.")
    entries = [recipes.get(name) or EAGER.get(name) or Entry(name=name, method=name) for name in names]
    for entry in entries:
        _check_method(entry, spec, recipes)
    if not entries:
        raise InputError(f"--methods is empty; {','.join(DEFAULT_METHODS)} is the default.")
    if any(is_eager(entry) for entry in entries) and importlib.util.find_spec("timm") is None:
        raise MissingDependencyError("timm", "bench", "comparing with eager PyTorch")
    return entries


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
        eager = EAGER.get(recipe.method)
        entries[name] = Entry(
            name=name,
            method=recipe.method,
            arguments=recipe.arguments,
            environment=eager.environment if eager else {},
            note=recipe.note or (eager.note if eager else None),
        )
    return entries


def is_eager(entry: Entry) -> bool:
    """Whether this row is plain PyTorch and not `edgetune fit`."""
    return entry.method in EAGER


def _check_method(entry: Entry, spec: ViTSpec, recipes: dict[str, Entry]) -> None:
    if is_eager(entry):
        return
    try:
        find_method(entry.method, spec.depth)
    except InputError:
        where = f"--recipe: {entry.name} has the method {entry.method}" if entry.name in recipes else "--methods"
        known = ", ".join((*EAGER, *METHOD_NAMES, *recipes))
        what = "which is unknown here" if entry.name in recipes else f"{entry.name or 'with an empty name'} is unknown"
        raise InputError(
            f"{where}{',' if entry.name in recipes else ''} {what}; use {known} (last-1 to last-{spec.depth})."
        ) from None
