"""The state of the method between blocks and steps, for any training loop.

    trains = controller.draw()                  # once per optimizer step: the blocks whose weights train
    x = model.embed(images)
    for index, block in enumerate(model.blocks):
        before = x
        x, received = block(x, with_received=controller.needs_attention(index))
        x = controller.after_block(index, before, x, received)

Evaluation uses the model without the controller: all tokens, no update.

Modes:

- reference: the method as the re-implementation by one of its authors has it. Each forward pass of a block updates its
  budget from the delta just seen, and the same pass drops tokens with the updated budget. A step is one forward pass:
  micro-batches would each count as a step of the rule, so a loop in reference mode doesn't split its batch.
- constrained: for hard caps. Only the given blocks may be drawn, the tokens a block lets through stay in its band,
  and budgets move **once per optimizer step**: the deltas of its forward passes are added up over their images (and
  divided by their number, where the reduction is the mean) and applied when the next step is drawn. Within a step all
  micro-batches drop with the same budgets. Three things follow: accumulated micro-batches give the gradient of the
  whole batch, the shapes of a step are known before it starts, and deltas stay on their device until one read per step.
- random: the control. Blocks are drawn uniformly, budgets stay what they were set to, nothing is measured.

The draw of step i comes from a generator seeded with (seed, i), so the state to save is small and a resumed run draws
what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from edgetune.alast.budgets import kept_count, update_budget, within_band
from edgetune.alast.draw import Draw, draw_blocks
from edgetune.alast.importance import Reduction, token_delta
from edgetune.alast.tokens import select_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from edgetune.schema import AlastPlan, BlockPlan

Mode = Literal["reference", "constrained", "random"]


class Controller:
    """Budgets, the draw and token selection of one run.

    Args:
        depth: number of blocks, L.
        k: blocks that train per step, K.
        mode: see the module.
        initial_budget: b of every block before the first step.
        budget_min: lower clip of the budgets.
        budget_max: upper clip.
        alpha: step of the budget rule; the base learning rate in the reference.
        draw: how blocks are drawn; "uniform" in mode "random", whatever is given.
        reduction: of the delta over images, see `token_delta`; over those of the forward pass in reference mode, over
            those of the step in constrained mode.
        trainable: blocks that may be drawn; all by default.
        bands: per block, the fewest and the most patch tokens that may leave it; holds in every mode.
        prefix_tokens: class, distillation and register tokens, never dropped.
        class_token: False where the model has none: the delta is then taken of the mean patch token.
        seed: of the draw.
    """

    def __init__(
        self,
        depth: int,
        *,
        k: int,
        mode: Mode = "reference",
        initial_budget: float = 0.9,
        budget_min: float = 0.5,
        budget_max: float = 1.0,
        alpha: float = 1e-4,
        draw: Draw = "softmax",
        reduction: Reduction = "sum",
        trainable: Sequence[int] | None = None,
        bands: Sequence[tuple[int, int]] | None = None,
        prefix_tokens: int = 1,
        class_token: bool = True,
        seed: int = 0,
    ) -> None:
        if bands is not None and (len(bands) != depth or any(low > high for low, high in bands)):
            raise ValueError(f"bands must be {depth} pairs (fewest, most)")
        self.depth, self.mode, self.alpha, self.reduction, self.seed = depth, mode, alpha, reduction, seed
        self.budget_min, self.budget_max = budget_min, budget_max
        self.prefix_tokens, self.class_token = prefix_tokens, class_token
        self._draw: Draw = "uniform" if mode == "random" else draw
        self._k = k
        self._trainable = sorted(set(range(depth) if trainable is None else trainable))
        self._bands = None if bands is None else [(low, high) for low, high in bands]
        self._given = self._k, list(self._trainable), self._bands
        self._step = 0
        self._budgets = [initial_budget] * depth
        self._deltas = [0.0] * depth
        self._sums: Tensor | list[float] | None = None  # deltas of the step under way, summed over its images
        self._images = [0] * depth
        self._entering: int | None = None  # patches of an image
        self._kept: list[int | None] = [None] * depth

    @classmethod
    def from_plan(
        cls,
        alast: AlastPlan,
        blocks: Sequence[BlockPlan],
        k: int,
        *,
        prefix_tokens: int = 1,
        class_token: bool = True,
        seed: int = 0,
    ) -> Controller:
        """The controller of a plan: its settings, its trainable blocks and their bands."""
        return cls(
            len(blocks),
            k=k,
            mode=alast.mode,
            initial_budget=alast.initial_budget,
            budget_min=alast.budget_min,
            budget_max=alast.budget_max,
            alpha=alast.alpha,
            draw=alast.draw,
            reduction=alast.reduction,
            trainable=[block.index for block in blocks if block.trainable],
            bands=[(block.keep_min_tokens, block.keep_max_tokens) for block in blocks],
            prefix_tokens=prefix_tokens,
            class_token=class_token,
            seed=seed,
        )

    # -- what a loop calls --------------------------------------------------------------------------------------------

    def draw(self) -> tuple[int, ...]:
        """Begin an optimizer step: the blocks whose weights train in it, ascending, by the budgets the last step left.

        Fewer than k where fewer may train.
        """
        self._settle()
        rng = random.Random(f"{self.seed}/{self._step}")
        self._step += 1
        return draw_blocks(self._budgets, self._k, rng, draw=self._draw, among=self._trainable)

    def needs_attention(self, index: int, tokens: int | None = None) -> bool:
        """Whether `after_block` will need the attention received in block `index`; False when nothing will be dropped.

        Args:
            index: the block.
            tokens: length of the sequence entering it; by default what left the block before, in this forward pass.
        """
        if tokens is not None:
            entering: int | None = tokens - self.prefix_tokens
        else:
            entering = self._kept[index - 1] if index else self._entering
        if entering is None:
            return True
        # The reference updates before it drops: ahead of the block only the lower clip is known.
        budget = self.budget_min if self.mode == "reference" else self._budgets[index]
        return self._allowed(index, budget, entering) < entering

    def after_block(self, index: int, before: Tensor, after: Tensor, received: Tensor | None) -> Tensor:
        """Note what block `index` did in the forward pass of a training step, and drop the tokens it doesn't let on.

        Args:
            index: the block.
            before: the residual stream that entered it, (B, N, C).
            after: the residual stream that left it, (B, N, C).
            received: attention each token received in it, (B, N); may be None where `needs_attention` said no.

        Returns:
            The tokens for the next block, (B, N' <= N, C): the prefix, then the patches as `tokens.top_tokens` orders
            them; `after` itself when all stay.
        """
        self._observe(index, before, after)
        entering = after.shape[1] - self.prefix_tokens
        if index == 0:
            self._entering = entering
        kept = self._kept[index] = self._allowed(index, self._budgets[index], entering)
        if kept == entering:
            return after
        if received is None:
            raise ValueError(f"block {index} drops {entering - kept} tokens, which needs the attention they received")
        return select_tokens(after, received, kept, self.prefix_tokens)

    def note(self, index: int, before: Tensor, after: Tensor, entering: int) -> int:
        """What `after_block` does, for a loop that drops tokens itself and may begin above block 0.

        Args:
            index: the block.
            before: the class token before it, (B, 1, C); the mean patch token where there is no class token.
            after: the same behind it.
            entering: patch tokens that entered it.

        Returns:
            How many patch tokens may leave it.
        """
        self._observe(index, before, after, summaries=True)
        kept = self._kept[index] = self._allowed(index, self._budgets[index], entering)
        return kept

    def note_moved(self, index: int, moved: float, images: int, entering: int) -> int:
        """What `note` does, for a loop without torch, which measures the movement itself.

        Args:
            index: the block.
            moved: squared movement of the images' summaries through the block, summed over channels and images.
            images: their number.
            entering: patch tokens that entered it.
        """
        if self.mode == "reference":
            self._move(index, moved if self.reduction == "sum" else moved / images)
        elif self.mode == "constrained":
            sums = list(self._read_sums())
            sums[index] += moved
            self._sums = sums
            self._images[index] += images
        kept = self._kept[index] = self._allowed(index, self._budgets[index], entering)
        return kept

    # -- what a loop reads --------------------------------------------------------------------------------------------

    @property
    def budgets(self) -> tuple[float, ...]:
        """The budget b of every block. Constrained mode: those the step under way, or just ended, has used."""
        return tuple(self._budgets)

    @property
    def kept(self) -> tuple[int | None, ...]:
        """Patch tokens that left each block in the last forward pass; None for a block not yet passed."""
        return tuple(self._kept)

    @property
    def k(self) -> int:
        """Blocks that train per step, at most."""
        return self._k

    @property
    def trainable(self) -> tuple[int, ...]:
        """Blocks that may be drawn."""
        return tuple(self._trainable)

    def tighten(
        self,
        *,
        k: int | None = None,
        lowest_trainable: int | None = None,
        keep_max_tokens: Sequence[int] | None = None,
    ) -> None:
        """Ask for less from the next step on. What would loosen a bound is ignored, so a proved worst case stays one.

        Args:
            k: blocks that train per step.
            lowest_trainable: no block below it is drawn any more.
            keep_max_tokens: per block, the most patch tokens that may leave it; the fewest follow where they exceed it.
        """
        if k is not None:
            self._k = min(self._k, k)
        if lowest_trainable is not None:
            self._trainable = [block for block in self._trainable if block >= lowest_trainable]
        if keep_max_tokens is not None:
            bands = self._bands or [(1, most) for most in keep_max_tokens]
            self._bands = [
                (min(low, high, most), min(high, most))
                for (low, high), most in zip(bands, keep_max_tokens, strict=True)
            ]

    def restore(self) -> None:
        """Undo every `tighten`: from the next step on, what the constructor was given holds again."""
        k, trainable, bands = self._given
        self._k, self._trainable, self._bands = k, list(trainable), bands

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as JSON-able values; call it between steps."""
        return {
            "step": self._step,
            "k": self._k,
            "trainable": list(self._trainable),
            "bands": None if self._bands is None else [list(band) for band in self._bands],
            "budgets": list(self._budgets),
            "deltas": list(self._deltas),
            "sums": self._read_sums(),
            "images": list(self._images),
            "entering": self._entering,
            "kept": list(self._kept),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`. Seed and settings are the constructor's; only what moves is restored."""
        if len(state["budgets"]) != self.depth:
            raise ValueError(f"the state is of {len(state['budgets'])} blocks, the controller of {self.depth}")
        self._step, self._k = state["step"], state["k"]
        self._trainable = list(state["trainable"])
        self._bands = None if state["bands"] is None else [(low, high) for low, high in state["bands"]]
        self._budgets, self._deltas = list(state["budgets"]), list(state["deltas"])
        self._sums, self._images = list(state["sums"]), list(state["images"])
        self._entering, self._kept = state["entering"], list(state["kept"])

    # -- inside -------------------------------------------------------------------------------------------------------

    def _observe(self, index: int, before: Tensor, after: Tensor, *, summaries: bool = False) -> None:
        """Measure a block's delta, and move its budget now (reference) or note it for the end of the step."""
        if self.mode == "random":
            return
        delta = token_delta(
            before,
            after,
            reduction=self.reduction if self.mode == "reference" else "sum",
            class_token=self.class_token or summaries,
            prefix_tokens=self.prefix_tokens,
        )
        if self.mode == "reference":
            self._move(index, float(delta))
        else:
            if self._sums is None or isinstance(self._sums, list):
                self._sums = delta.new_tensor(self._read_sums())
            self._sums[index] += delta  # stays on its device
            self._images[index] += len(before)

    def _settle(self) -> None:
        """Constrained mode: move the budgets by what the step just ended has shown."""
        for index, (total, images) in enumerate(zip(self._read_sums(), self._images, strict=True)):
            if images:
                self._move(index, total if self.reduction == "sum" else total / images)
        self._sums, self._images = None, [0] * self.depth

    def _read_sums(self) -> list[float]:
        """The step's deltas on the host: the one read per step."""
        if self._sums is None or isinstance(self._sums, list):
            return self._sums or [0.0] * self.depth
        values: list[float] = self._sums.tolist()
        return values

    def _move(self, index: int, delta: float) -> None:
        """Apply the budget rule to one block."""
        former = self._deltas[index]
        self._budgets[index] = update_budget(
            self._budgets[index], delta, former, self.alpha, self.budget_min, self.budget_max
        )
        if delta - delta == 0:  # finite; the loop will stop at the loss, which isn't either
            self._deltas[index] = delta

    def _allowed(self, index: int, budget: float, entering: int) -> int:
        """Patches that may leave block `index`."""
        kept = kept_count(budget, entering + 1)
        return kept if self._bands is None else within_band(kept, entering, *self._bands[index])
