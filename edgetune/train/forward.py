"""One training forward pass through a plain ViT, in which the caller decides what is kept for the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgetune.model.vit import Block, VisionTransformer

if TYPE_CHECKING:
    from edgetune.alast import Controller


class _Recomputed(torch.autograd.Function):
    """A block that keeps its input alone and runs again in the backward pass.

    `torch.utils.checkpoint` does the same and imports torch's compiler to do it, 150 MB of resident memory. The
    parameters are arguments so that autograd knows the output depends on them; their gradients are accumulated by the
    second run itself.
    """

    @staticmethod
    def forward(
        ctx: Any, block: Block, observe: bool, queries: int, x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        ctx.block, ctx.parameters = block, len(parameters)
        kind = x.device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        ctx.save_for_backward(x)
        after, received = block(x, with_received=observe, query_tokens=queries)
        if received is not None:
            ctx.mark_non_differentiable(received)
        return after, received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad(), torch.autocast(*ctx.autocast):  # the backward pass runs outside of the forward's
            again = x.detach().requires_grad_(ctx.needs_input_grad[3])
            after, _ = ctx.block(again)
            # as `after.backward(gradients[0])` would, which imports torch's symbolic shapes: 34 MB
            product = (after * gradients[0]).sum()
        product.backward()
        return (None, None, None, again.grad, *([None] * ctx.parameters))


def training_forward(
    model: VisionTransformer,
    images: Tensor,
    *,
    lowest_trained: int,
    embeddings_trained: bool = False,
    controller: Controller | None = None,
    recompute: bool = False,
) -> Tensor:
    """Logits (B, classes) of images (B, 3, S, S), with autograd from `lowest_trained` upwards only.

    Args:
        model: the transformer; which of its parameters take gradients is the caller's doing.
        images: normalised images.
        lowest_trained: no block below this index keeps anything for the backward pass.
        embeddings_trained: the embeddings take gradients, so every block keeps what passes them on.
        controller: adaptive layer selection: observes the class token at every block and drops tokens.
        recompute: keep only each block's input and run the block again in the backward pass.
    """
    with torch.set_grad_enabled(embeddings_trained):
        x = model.embed(images)
    for index, block in enumerate(model.blocks):
        observe = controller is not None and controller.needs_attention(index)
        # without a class token, tokens are ranked by the mean attention that all of them give (alast.md, open points)
        queries = 1 if model.spec.class_token else x.shape[1]
        with torch.set_grad_enabled(embeddings_trained or index >= lowest_trained):
            if recompute and torch.is_grad_enabled():
                after, received = _Recomputed.apply(block, observe, queries, x, *block.parameters())
            else:
                after, received = block(x, with_received=observe, query_tokens=queries)
            x = after if controller is None else controller.after_block(index, x, after, received)
    return model.classify(x)
