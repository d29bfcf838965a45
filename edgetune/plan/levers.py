"""The levers of a plan: what a run can trade memory, time, disk and exactness by.

A method comes with its levers set; `--lever NAME=VALUE` sets one by hand, `edgetune bench --recipe` a set of them. Each
is a field of the plan, a branch in the engine and a term in the cost model. Those that only the lean trainer knows are
refused for the other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import product
from typing import Any, Literal

import msgspec

from edgetune.errors import InputError
from edgetune.model import block
from edgetune.model.spec import ViTSpec

Trainer = Literal["lean", "autograd"]
Bits = Literal["fp32", "bf16"]
SavedPrecision = Literal["fp32", "bf16", "int8", "int4"]
OptimizerState = Literal["fp32", "int8", "factored"]
Residence = Literal["fp32", "bf16", "int8", "disk"]
FeatureCache = Literal["off", "fp16", "int8"]


class Levers(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the levers."""

    trainer: Trainer = "autograd"  # who trains: blocks with a backward pass of their own, or torch's autograd
    trained_blocks: int | None = None  # trailing blocks that may train, at most; None: the method's
    k: int | None = None  # of them at a time, at most; None: the method's
    token_min: float | None = None  # share of the patches that leaves a trained block, at least; None: the method's
    token_max: float | None = None  # and at most
    precision: Bits = "fp32"  # of the matrix products
    frozen_precision: Bits = "fp32"  # of the matrix products below the lowest trained block
    frozen_weights: Residence = "fp32"  # how the weights there are kept
    optimizer: Literal["adamw", "adam", "sgd", "sgd-plain"] = "adamw"
    optimizer_state: OptimizerState = "fp32"
    saved_activations: Literal["full", "recompute"] = "full"
    recompute_share: float = 1.0  # of the blocks that keep something: the lowest of them are run again, then
    saved_precision: SavedPrecision = "fp32"  # of what is kept for the backward pass
    # Tokens of the images that pass a block together, about: fewer need less memory and more time. None: `part_size`'s.
    part_tokens: int | None = None
    feature_cache: FeatureCache = "off"  # what lies below the lowest trained block, computed once and kept on disk
    feature_views: int = 1  # augmented views of each image that are cached


def frozen_arithmetic(levers: Levers, *, adapters: bool) -> Bits:
    """Type of the matrix products with frozen weights; that of the others, where adapters make them part of these."""
    lower = levers.precision if adapters else levers.frozen_precision
    return "bf16" if "bf16" in (levers.precision, lower) else "fp32"


def recomputed_blocks(levers: Levers, first: int, depth: int) -> range:
    """Which of the blocks from `first` on, which keep something for the backward pass, are run again in it.

    The lowest: the backward pass reaches them when the others have let go of what they kept.
    """
    if levers.saved_activations == "full" or first == depth:
        return range(first, first)
    return range(first, first + max(1, math.ceil(levers.recompute_share * (depth - first) - 1e-9)))


_LEAN_ONLY = (
    "frozen_precision",
    "frozen_weights",
    "optimizer_state",
    "recompute_share",
    "saved_precision",
    "part_tokens",
    "feature_cache",
    "feature_views",
)


# What the planner may change where nobody set it by hand, mildest first: it costs time or exactness, not learning time.
_ECONOMIES: tuple[tuple[dict[str, Any], ...], ...] = (
    tuple({"saved_precision": value} for value in ("fp32", "bf16", "int8", "int4")),
    (
        {"saved_activations": "full", "recompute_share": 1.0},
        {"saved_activations": "recompute", "recompute_share": 0.5},
        {"saved_activations": "recompute", "recompute_share": 1.0},
    ),
    tuple({"frozen_weights": value} for value in ("fp32", "bf16", "int8", "disk")),
)


def economies(levers: Levers, given: Collection[str]) -> list[Levers]:
    """Ways of needing less memory with the same blocks and tokens, mildest first; `levers` as they are among them.

    Args:
        levers: the method's.
        given: names of those that were set by hand, and stay.
    """
    if levers.trainer != "lean":
        return [levers]
    choices = []
    for values in _ECONOMIES:
        own = {name: getattr(levers, name) for name in values[0]}
        choices.append([own] if set(own) & set(given) else values[values.index(own) :])
    forms = ({name: value for part in chosen for name, value in part.items()} for chosen in product(*choices))
    return [msgspec.structs.replace(levers, **form) for form in forms]


def set_levers(levers: Levers, given: Sequence[str]) -> Levers:
    """`levers` with those of the command line set.

    Args:
        levers: the method's.
        given: texts of the form `name=value`.

    Raises:
        InputError: a name or value is unknown, or the trainer lacks the lever.
    """
    values: dict[str, Any] = {}
    shares = ("token_min", "token_max", "recompute_share")
    for text in given:
        _, equals, value = text.partition("=")
        name = name_of(text)
        if not equals or name not in Levers.__struct_fields__:
            names = ", ".join(Levers.__struct_fields__)
            raise InputError(f"--lever {text} is not understood; write NAME=VALUE with one of {names}.")
        values[name] = _share(text, value) if name in shares else value.strip()
    try:
        chosen = msgspec.convert(msgspec.to_builtins(levers) | values, Levers, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(f"--lever {' '.join(given)} can't be set so: {error}.") from None
    given_shares = [share for share in (chosen.token_min, chosen.token_max) if share is not None]
    if any(not 0 < share <= 1 for share in given_shares) or given_shares != sorted(given_shares):
        raise InputError("--lever token_min and token_max are shares of the patches: 0 < token_min <= token_max <= 1.")
    if not 0 < chosen.recompute_share <= 1:
        raise InputError("--lever recompute_share is a share of the blocks: 0 < recompute_share <= 1.")
    if "recompute_share" in values and chosen.saved_activations == "full":
        raise InputError("--lever recompute_share needs blocks that are run again; add saved_activations=recompute.")
    counts = (chosen.trained_blocks, chosen.k, chosen.part_tokens, chosen.feature_views)
    if any(count is not None and count < 1 for count in counts):
        raise InputError("--lever trained_blocks, k, part_tokens and feature_views are counts; give 1 or more.")
    plain = Levers()
    if chosen.trainer == "autograd":
        for name in _LEAN_ONLY:
            if getattr(chosen, name) != getattr(plain, name):
                raise InputError(f"--lever {name}={getattr(chosen, name)} needs the lean trainer; add trainer=lean.")
        if chosen.optimizer == "sgd-plain":
            raise InputError("--lever optimizer=sgd-plain needs the lean trainer; add trainer=lean.")
    return chosen


def name_of(text: str) -> str:
    """The lever that `name=value` sets."""
    return text.partition("=")[0].strip().replace("-", "_")


def _share(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(f"--lever {text} is not a number; give a share, 0.7 for instance.") from None


def part_size(spec: ViTSpec, batch_size: int, part_tokens: int | None = None) -> int:
    """Images of a batch that pass a block of the lean trainer at a time, where no cap asks for fewer.

    The gradient is that of the whole batch. Without `part_tokens` the model's width decides (`edgetune.model.block`).
    """
    wanted = block.part_tokens(spec.width) if part_tokens is None else part_tokens
    most = max(1, round(wanted / spec.tokens))
    return math.ceil(batch_size / math.ceil(batch_size / most))
