"""Which engine trains: torch, or ONNX graphs run by onnxruntime, and what the latter offers. Imports neither.

The ONNX engine is the lean trainer's step in float32 (`edgetune.train.onnx`): it has no other arithmetic, saves
exactly, keeps the optimizer's state in float32, and knows no GPU. A method's levers are set to what it has; those that
were set by hand to something else are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import msgspec

from edgetune.errors import InputError
from edgetune.plan.levers import Levers, name_of, set_levers
from edgetune.plan.methods import Method, find_method, with_levers
from edgetune.schema import Engine

# What a lever may be under the ONNX engine, the value first that a method's is replaced by.
_OFFERED: dict[str, tuple[Any, ...]] = {
    "trainer": ("lean",),
    "precision": ("fp32",),
    "frozen_precision": ("fp32",),
    "frozen_weights": ("fp32", "disk"),
    "optimizer_state": ("fp32",),
    "saved_precision": ("fp32",),
}


_HINT = "leave it out, or use --engine torch"


def candidates(engine: str, device: str) -> tuple[Engine, ...]:
    """The engines to plan for, the preferred one first.

    Args:
        engine: as asked for: "auto", "torch" or "onnx".
        device: as asked for.

    Raises:
        InputError: there is no such engine, or not on that device.
    """
    if engine == "torch":
        return ("torch",)
    if engine == "onnx":
        if device != "cpu":
            raise InputError(
                f"--engine onnx trains on the CPU alone; leave out --device {device}, or use --engine torch."
            )
        return ("onnx",)
    if engine != "auto":
        raise InputError(f"--engine {engine} is unknown; use auto, torch or onnx.")
    if device != "cpu" or not _installed("onnxruntime"):
        return ("torch",)
    return ("torch", "onnx") if _installed("torch") else ("onnx",)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def method_under(engine: Engine, name: str, given: Sequence[str], depth: int) -> Method:
    """The method of a name with the levers of an engine, and those of the command line.

    Args:
        engine: that will train.
        name: of the method.
        given: `name=value`, see `edgetune.plan.levers`.
        depth: of the model.

    Raises:
        InputError: there is no such method, or a lever can't be set so.
    """
    method = find_method(name, depth)
    others = [text for text in given if engine == "onnx" and name_of(text) == "trainer" and "lean" not in text]
    if others:  # said here, before what else the other trainer lacks
        raise InputError(f"--engine onnx has no {others[0]} (it has lean); {_HINT}.")
    if engine == "torch":
        return with_levers(method, given, depth)
    has = {lever: offered[0] for lever, offered in _OFFERED.items() if getattr(method.levers, lever) not in offered}
    method = method._replace(levers=msgspec.structs.replace(method.levers, **has))
    refuse_levers(set_levers(method.levers, given))
    return with_levers(method, given, depth, engine)


def refuse_levers(levers: Levers, hint: str = _HINT) -> None:
    """Make sure that the ONNX engine has what the levers ask for.

    Raises:
        InputError: it does not.
    """
    for name, offered in _OFFERED.items():
        value = getattr(levers, name)
        if value not in offered:
            raise InputError(f"--engine onnx has no {name}={value} (it has {' and '.join(offered)}); {hint}.")


def economical(forms: list[Levers], engine: Engine) -> list[Levers]:
    """Of the ways to need less memory, those that an engine has."""
    if engine != "onnx":
        return forms
    return [form for form in forms if all(getattr(form, name) in offered for name, offered in _OFFERED.items())]
