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
    pooled = x[:, spec.prefix :].mean(1, keepdim=True) if spec.readers is None else x[:, : spec.readers]
    return _logits(spec, weights, F.layer_norm(pooled, [spec.width], scale, shift, spec.norm_eps))


def loss_and_gradients(
    spec: ViTSpec, weights: Mapping[str, Tensor], x: Tensor, labels: Tensor, label_smoothing: float
) -> tuple[float, Tensor, dict[str, Tensor]]:
    """Mean cross-entropy of a batch, its gradient towards the tokens x, and towards the classifier's weights.

    With targets t = (1 - ε) one-hot + ε / classes, the gradient towards the logits is (softmax - t) / B. By hand like
    the blocks: the first use of autograd would bring code into memory, megabytes for a few numbers.
    """
    norm, shape = spec.final_norm, [spec.width]
    scale, shift = weights[norm + ".weight"], weights[norm + ".bias"]
    pooled = x[:, spec.prefix :].mean(1, keepdim=True) if spec.readers is None else x[:, : spec.readers].contiguous()
    read, mean, rstd = torch.native_layer_norm(pooled, shape, scale, shift, spec.norm_eps)
    logits = _logits(spec, weights, read)
    logs = torch.log_softmax(logits, 1)
    count, classes = logits.shape
    targets = torch.full_like(logs, label_smoothing / classes)
    targets.scatter_add_(1, labels[:, None], targets.new_full((count, 1), 1 - label_smoothing))
    loss = -(targets * logs).sum().item() / count

    d_logits = logs.exp_().sub_(targets).div_(count * len(spec.classifiers))
    gradients: dict[str, Tensor] = {}
    d_read = torch.empty_like(read)
    for place, head in enumerate(spec.classifiers):
        gradients[head + ".weight"] = d_logits.t() @ read[:, place]
        gradients[head + ".bias"] = d_logits.sum(0)
        d_read[:, place] = d_logits @ weights[head + ".weight"]
    d_pooled, gradients[norm + ".weight"], gradients[norm + ".bias"] = torch.ops.aten.native_layer_norm_backward(
        d_read, pooled, shape, mean, rstd, scale, shift, [True, True, True]
    )
    dx = torch.zeros_like(x)
    if spec.readers is None:
        dx[:, spec.prefix :] = d_pooled / (x.shape[1] - spec.prefix)
    else:
        dx[:, : spec.readers] = d_pooled
    return loss, dx, gradients


def _logits(spec: ViTSpec, weights: Mapping[str, Tensor], read: Tensor) -> Tensor:
    """Normalised tokens (B, classifiers, C) to the mean of what the classifiers say of them."""
    parts = [
        F.linear(read[:, place], weights[head + ".weight"], weights[head + ".bias"])
        for place, head in enumerate(spec.classifiers)
    ]
    return parts[0] if len(parts) == 1 else (parts[0] + parts[1]) / 2


def _unfold(spec: ViTSpec, images: Tensor) -> Tensor:
    """Images (B, 3, S, S) to the pixels of each patch, (B, P, 3 · p²)."""
    grid, side = spec.grid, spec.patch_size
    parts = images.view(len(images), 3, grid, side, grid, side)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(len(images), spec.patches, -1)
