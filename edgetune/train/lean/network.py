"""The parts of a plain ViT around its blocks, as functions: embedding with its backward pass, classifier and loss.

The patch embedding is one matrix product over unfolded patches, which needs no layout of its own for a convolution.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from edgetune.model.spec import ViTSpec

_PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")


def embed(spec: ViTSpec, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Images (B, 3, S, S) to tokens (B, N, C)."""
    kernel = weights["patch_embed.proj.weight"]
    positions = weights["pos_embed"]
    tokens = images.new_empty(len(images), spec.tokens, spec.width)
    patches = F.linear(_unfold(spec, images), kernel.view(len(kernel), -1), weights["patch_embed.proj.bias"])
    tokens[:, spec.prefix :] = patches.add_(positions[:, spec.prefix_positions :])
    place = 0
    for name in _PREFIX_TOKENS:
        if name in weights:
            count = weights[name].shape[1]
            tokens[:, place : place + count] = weights[name]
            place += count
    if spec.position_on_prefix:
        tokens[:, : spec.prefix] += positions[:, : spec.prefix]
    return tokens


def embed_backward(
    spec: ViTSpec, weights: Mapping[str, Tensor], images: Tensor, dx: Tensor, totals: dict[str, Tensor]
) -> None:
    """Add the gradients of `embed`'s weights to `totals`; dx is the gradient of its output (B, N, C)."""
    summed = dx.sum(0)
    totals["pos_embed"] += summed[None, spec.prefix - spec.prefix_positions :]
    place = 0
    for name in _PREFIX_TOKENS:
        if name in weights:
            count = weights[name].shape[1]
            totals[name] += summed[None, place : place + count]
            place += count
    d_patches = dx[:, spec.prefix :].reshape(-1, spec.width)
    kernel = totals["patch_embed.proj.weight"]
    kernel.view(len(kernel), -1).addmm_(d_patches.t(), _unfold(spec, images).view(len(d_patches), -1))
    totals["patch_embed.proj.bias"] += d_patches.sum(0)


def logits_of(spec: ViTSpec, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Tokens after the last block, all of them or the `readers` alone, to logits (B, classes)."""
    norm = spec.final_norm
    scale, shift = weights[norm + ".weight"], weights[norm + ".bias"]
    if spec.pool == "avg":
        pooled = F.layer_norm(x[:, spec.prefix :].mean(1), [spec.width], scale, shift, spec.norm_eps)
        return F.linear(pooled, weights["head.weight"], weights["head.bias"])
    read = F.layer_norm(x[:, : spec.readers], [spec.width], scale, shift, spec.norm_eps)
    parts = [
        F.linear(read[:, place], weights[head + ".weight"], weights[head + ".bias"])
        for place, head in enumerate(spec.classifiers)
    ]
    return parts[0] if len(parts) == 1 else (parts[0] + parts[1]) / 2


def loss_and_gradients(
    spec: ViTSpec, weights: Mapping[str, Tensor], x: Tensor, labels: Tensor, label_smoothing: float
) -> tuple[float, Tensor, dict[str, Tensor]]:
    """Mean cross-entropy of a batch, its gradient towards the tokens x, and towards the classifier's weights.

    These are the few tensors for which autograd costs nothing worth deriving it by hand.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
        loss = F.cross_entropy(logits_of(spec, leaves, leaf), labels, label_smoothing=label_smoothing)
        dx, *found = torch.autograd.grad(loss, [leaf, *leaves.values()])
    return float(loss.detach()), dx, dict(zip(leaves, found, strict=True))


def _unfold(spec: ViTSpec, images: Tensor) -> Tensor:
    """Images (B, 3, S, S) to the pixels of each patch, (B, P, 3 · p²)."""
    grid, side = spec.grid, spec.patch_size
    parts = images.view(len(images), 3, grid, side, grid, side)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(len(images), spec.patches, -1)
