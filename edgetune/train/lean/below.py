"""What lies below the lowest block that may train: run without a backward pass, in place, in the plan's precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from edgetune.alast import top_tokens
from edgetune.model.block import Shape
from edgetune.model.spec import ViTSpec
from edgetune.model.store import WeightsStore
from edgetune.model.torch_ops import TorchOps
from edgetune.plan.job import levers_of
from edgetune.plan.levers import frozen_arithmetic
from edgetune.schema import Plan
from edgetune.train.lean.frozen import FrozenBlocks
from edgetune.train.lean.network import embed
from edgetune.train.lean.passing import pass_block
from edgetune.train.lean.tokens import gathered


class FrozenPart:
    """Embedding and frozen blocks, from images to what enters the lowest trainable block.

    Args:
        plan: the constraints.
        spec: the model.
        store: the weights the run began with.
        embeddings: gives the weights of the embedding, which are not kept where `free` may be called.
        device: where it runs.
    """

    def __init__(
        self,
        plan: Plan,
        spec: ViTSpec,
        store: WeightsStore,
        embeddings: Callable[[], Mapping[str, Tensor]],
        device: torch.device,
    ) -> None:
        self._spec, self._read_embeddings = spec, embeddings
        self._embeddings: Mapping[str, Tensor] | None = None
        self._shape = Shape(spec.heads, spec.norm_eps)
        self._lowest = min((block.index for block in plan.blocks if block.trainable), default=spec.depth)
        self._stay = plan.blocks[self._lowest - 1].keep_max_tokens if self._lowest else spec.patches
        arithmetic = frozen_arithmetic(levers_of(plan), adapters=plan.lora is not None)
        compute = torch.bfloat16 if arithmetic == "bf16" else torch.float32
        self._ops = TorchOps(None if compute == torch.float32 else compute)
        frozen = [block.index for block in plan.blocks if not block.trainable or plan.lora]
        self.blocks = FrozenBlocks(store, frozen, plan.frozen_weights, compute, device)

    def embed(self, images: Tensor) -> Tensor:
        """Tokens (B, N, C) of images (B, 3, S, S)."""
        if self._embeddings is None:
            self._embeddings = self._read_embeddings()
        return embed(self._spec, self._embeddings, images)

    def free(self) -> None:
        """Give back memory until this part is needed again."""
        self._embeddings = None
        self.blocks.free()

    @torch.no_grad()
    def features(self, images: Tensor, part: int, *, all_tokens: bool = False) -> Tensor:
        """`embed`, then `run`."""
        pieces = [self.embed(images[start : start + part]) for start in range(0, len(images), part)]
        return self.run(torch.cat(pieces), part, all_tokens=all_tokens)

    @torch.no_grad()
    def run(self, x: Tensor, part: int, *, all_tokens: bool = False) -> Tensor:
        """Pass embedded tokens (B, N, C), which are written over, up to the lowest block that may train.

        Args:
            x: the stream.
            part: images that pass a block at a time.
            all_tokens: keep every token, as in evaluation; otherwise as many as the plan lets into that block.

        Returns:
            (B, N', C); where nothing but the classifier trains, the tokens that it reads.
        """
        depth = self._spec.depth
        for index in range(self._lowest):
            last = index == depth - 1
            drops = index == self._lowest - 1 and not last and not all_tokens and self._stay < self._spec.patches
            x, received = pass_block(
                self._ops,
                x,
                partial(self.blocks.half, index),
                self._shape,
                part,
                readers=self._spec.readers if last else None,
                observe=None if not drops else 1 if self._spec.class_token else self._spec.tokens,
            )
            if drops:
                x = gathered(x, top_tokens(torch.cat(received), self._stay, self._spec.prefix))
        return x
