"""The methods: which blocks train, with which optimizer, and with which default recipe.

One table, so that a comparison is a comparison of rows. The defaults are where a fine-tuning run should start without
being told; `--lr` and the other options overrule them.

- `alast`, `random-k` and `alast-lora` keep the settings of the re-implementation of ALaST (arXiv 2408.08670) that its
  authors' group published: Adam, 1e-4, constant rate, no weight decay, no smoothing, K = three quarters of the depth.
- `full`, `checkpoint`, `last-K`, `head` and `edgetune` use AdamW with linear warm-up and a half cosine, as is usual for
  fine-tuning a ViT. Where whole blocks train the rate is `RATE_REACH` by width and number of trained blocks: an update
  of Adam's moves every weight by about the rate, so that what a layer gives moves with its width (arXiv 2203.03466),
  and what the network gives with the number of layers that move. The constant is a compromise between two measured
  grids (docs/planner.md). Rates are for a batch of 32 and move with the square root of the batch, as
  Adam's noise does (arXiv 2205.10287).
- `edgetune` runs in the lean trainer (`edgetune.train.lean`); the others, which it is compared with, under autograd.
- LoRA (arXiv 2106.09685) trains adapters of rank 8 on the attention weights, without weight decay.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from edgetune.errors import InputError
from edgetune.plan.levers import Levers, name_of, set_levers
from edgetune.schema import AlastPlan, LoraPlan

REFERENCE_BATCH = 32
WARM_UP_SHARE = 0.05
RATE_REACH = 0.25  # learning rate times width times blocks that train, at the reference batch
HEAD_RATE = 1e-3  # where none does
DEFAULT_EPOCHS = 10

# The recipe of `edgetune` without pressure from any cap (benchmarks/recipes.json says it in words, and a test holds
# them to this): the trailing sixth of the blocks, all of them every step, on all tokens, over features that are
# computed once. Field results that led here: a block above the lowest trained one is paid for whether it trains or
# not, and trailing blocks carry most of what a new task needs; dropping tokens has yet to earn its place against that
# (docs/lean.md).
TRAINED_SHARE = 1 / 6
RECIPE = Levers(
    trainer="lean",
    saved_precision="int8",
    part_tokens=200,
    optimizer_state="factored",
    frozen_weights="disk",
    feature_cache="fp16",
)
BAND = (0.5, 1.0)  # of a method that adapts its tokens
BAND_STEPS = (1.0, 0.85, 0.7, 0.6, 0.5)  # what the planner may lower the band's upper end to


class Method(NamedTuple):
    """One way of fine-tuning, resolved for a depth. `trained` counts trailing blocks that may train."""

    name: str
    summary: str
    trained: int
    k: int
    levers: Levers = Levers()
    band: tuple[float, float] = BAND
    learning_rate: float | None = None  # None: by the model's width and the blocks that train
    weight_decay: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    label_smoothing: float = 0.1
    embeddings_trainable: bool = False
    alast: AlastPlan | None = None
    lora: LoraPlan | None = None
    searched: bool = (
        False  # the planner may train fewer blocks, fewer at a time, on fewer tokens, and keep less exactly
    )
    given: frozenset[str] = frozenset()  # levers that were set by hand

    def rate_for(self, batch_size: int, width: int, trained: int) -> float:
        """The default learning rate at a batch size, for a model's width and so many blocks that may train."""
        rate = self.learning_rate
        if rate is None:
            rate = float(f"{RATE_REACH / (width * trained):.2g}") if trained else HEAD_RATE
        if self.schedule == "constant":  # the reference keeps its rate at any batch
            return rate
        return rate * math.sqrt(batch_size / REFERENCE_BATCH)

    def warm_up(self, total_steps: int) -> int:
        """Steps of linear warm-up."""
        return 0 if self.schedule == "constant" else min(total_steps, max(1, round(WARM_UP_SHARE * total_steps)))


METHOD_NAMES = ("edgetune", "alast", "full", "checkpoint", "head", "last-K", "lora", "alast-lora", "random-k")


def with_levers(method: Method, given: Sequence[str], depth: int, engine: str = "torch") -> Method:
    """A method with levers set by hand; those that bound the search bound it from above.

    Raises:
        InputError: a lever can't be set so.
    """
    levers = set_levers(method.levers, given)
    trained = method.trained if levers.trained_blocks is None else levers.trained_blocks
    if trained > depth:
        raise InputError(f"--lever trained_blocks={trained} is more than the {depth} there are; give 1 to {depth}.")
    # the ONNX engine passes a whole batch through a block before the next, so that one forward pass is one step
    in_parts = levers.trainer == "lean" and engine != "onnx"
    if in_parts and method.alast is not None and method.alast.mode == "reference":
        raise InputError(
            f"--lever trainer=lean moves budgets once a step; --method {method.name} needs trainer=autograd."
        )
    if levers.trained_blocks is not None and method.embeddings_trainable and trained < depth:
        raise InputError(f"--method {method.name} trains the embeddings, and so every block; use last-{trained}.")
    k = min(trained, method.k if levers.trained_blocks is None or method.k < method.trained else trained)
    low = method.band[0] if levers.token_min is None else levers.token_min
    high = method.band[1] if levers.token_max is None else levers.token_max
    return method._replace(
        levers=levers,
        given=frozenset(map(name_of, given)),
        trained=trained,
        k=k if levers.k is None else min(levers.k, trained),
        band=(min(low, high), high),
    )


def find_method(name: str, depth: int) -> Method:
    """The method of a name for a model of `depth` blocks.

    Raises:
        InputError: no such method, or `last-K` with a K the model does not have.
    """
    three_quarters = max(1, int(0.75 * depth + 0.5))
    reference = AlastPlan(mode="reference", initial_budget=0.9, budget_min=0.5, budget_max=1.0, alpha=1e-4)
    as_published = Method(
        name=name,
        summary="ALaST as published: three quarters of the blocks, drawn anew every step, on the tokens that matter",
        trained=depth,
        k=three_quarters,
        levers=Levers(optimizer="adam"),
        learning_rate=1e-4,
        weight_decay=0.0,
        schedule="constant",
        label_smoothing=0.0,
        embeddings_trainable=True,
        alast=reference,
    )
    last = re.fullmatch(r"last-(\d{1,3})", name)
    if last:
        trained = int(last[1])
        if not 1 <= trained <= depth:
            raise InputError(
                f"--method {name} asks for more or fewer blocks than there are; use last-1 to last-{depth}."
            )
        summary = f"the last {trained} of {depth} blocks"
        return Method(name=name, summary=summary, trained=trained, k=trained)
    if name == "edgetune":
        trained = max(1, round(TRAINED_SHARE * depth))
        return Method(
            name=name,
            summary="constrained ALaST: as many trailing blocks and tokens as the caps allow",
            trained=trained,
            k=trained,
            levers=RECIPE,
            band=(1.0, 1.0),
            # the mean over images instead of the sum, with a step that makes the two agree at the reference batch
            alast=AlastPlan(mode="constrained", alpha=1e-4 * REFERENCE_BATCH, reduction="mean"),
            searched=True,
        )
    if name in ("full", "checkpoint"):
        return Method(
            name=name,
            summary="every weight" if name == "full" else "every weight; blocks run again instead of being remembered",
            trained=depth,
            k=depth,
            embeddings_trainable=True,
            levers=Levers(saved_activations="full" if name == "full" else "recompute"),
        )
    if name == "head":
        return Method(name=name, summary="final norm and classifier only", trained=0, k=0)
    if name == "lora":
        return Method(
            name=name,
            summary="rank-8 adapters on the attention of every block",
            trained=depth,
            k=depth,
            learning_rate=1e-3,
            weight_decay=0.0,
            lora=LoraPlan(),
        )
    if name == "alast":
        return as_published
    if name == "random-k":
        return as_published._replace(
            summary="the control of ALaST: random blocks, a fixed share of the tokens",
            alast=AlastPlan(
                mode="random", initial_budget=0.9, budget_min=0.9, budget_max=0.9, alpha=0.0, draw="uniform"
            ),
        )
    if name == "alast-lora":
        return as_published._replace(
            summary="ALaST over rank-8 adapters: a block that is not drawn keeps its adapters",
            embeddings_trainable=False,
            lora=LoraPlan(),
        )
    raise InputError(f"--method {name} is unknown; use one of {', '.join(METHOD_NAMES)} (last-4, for instance).")
