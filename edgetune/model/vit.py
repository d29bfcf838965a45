"""Plain vision transformers in torch, under timm's parameter names.

One class serves ViT, DeiT (with and without distillation token) and DINOv2 (LayerScale, registers): `ViTSpec` says
which parts exist. Shapes in comments: B images, N tokens (prefix and patches), P patches, C width, H heads, D = C / H.

A. Dosovitskiy et al., arXiv 2010.11929; H. Touvron et al., arXiv 2012.12877; M. Oquab et al., arXiv 2304.07193;
T. Darcet et al., arXiv 2309.16588.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgetune.model.spec import ViTSpec


class PatchEmbed(nn.Module):
    """Images (B, 3, S, S) to patch tokens (B, P, C) by one strided convolution."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, spec.width, spec.patch_size, spec.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.proj(images)  # (B, C, S/p, S/p)
        return patches.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention through torch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, *, with_received: bool = False, query_tokens: int = 1) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: (B, N, C).
            with_received: also compute the attention that the first `query_tokens` tokens give to every token, which
                the fused kernel does not return. It is observed, not trained through.
            query_tokens: 1 for the class token's row; N for the mean attention received, where no class token exists.

        Returns:
            The output (B, N, C), and the attention received, mean over heads and query tokens, (B, N) or None.
        """
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, H, N, D)
        received = None
        if with_received:
            with torch.no_grad():
                scores = (q[:, :, :query_tokens] @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
                received = scores.softmax(-1).mean((1, 2))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        return self.proj(mixed), received


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width, spec.norm_eps)
        self.attn = Attention(spec.width, spec.heads)
        self.ls1 = LayerScale(spec.width, spec.layer_scale_init) if spec.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(spec.width, spec.norm_eps)
        self.mlp = Mlp(spec.width, spec.hidden)
        self.ls2 = LayerScale(spec.width, spec.layer_scale_init) if spec.layer_scale else nn.Identity()

    def forward(self, x: Tensor, *, with_received: bool = False, query_tokens: int = 1) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) to (B, N, C), and the attention received (B, N) when asked for; see `Attention.forward`."""
        mixed, received = self.attn(self.norm1(x), with_received=with_received, query_tokens=query_tokens)
        x = x + self.ls1(mixed)
        return x + self.ls2(self.mlp(self.norm2(x))), received


class VisionTransformer(nn.Module):
    """A plain ViT built from its spec. `embed`, `blocks` and `classify` are apart so that a trainer owns the loop."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        if spec.distillation_token:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        if spec.register_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, spec.register_tokens, spec.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.prefix_positions + spec.patches, spec.width))
        self.patch_embed = PatchEmbed(spec)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        norm = nn.LayerNorm(spec.width, spec.norm_eps)
        self.norm = norm if spec.final_norm == "norm" else nn.Identity()
        self.fc_norm = norm if spec.final_norm == "fc_norm" else nn.Identity()
        self.head = nn.Linear(spec.width, spec.classes)
        if spec.distillation_token:
            self.head_dist = nn.Linear(spec.width, spec.classes)

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) to tokens (B, N, C): class, distillation and register tokens, then the patches."""
        patches = self.patch_embed(images)
        names = ("cls_token", "dist_token", "reg_token")
        prefix = [getattr(self, name).expand(len(images), -1, -1) for name in names if hasattr(self, name)]
        if self.spec.position_on_prefix:
            tokens: Tensor = torch.cat([*prefix, patches], 1) + self.pos_embed
            return tokens
        return torch.cat([*prefix, patches + self.pos_embed], 1)

    def classify(self, x: Tensor) -> Tensor:
        """Tokens after the last block (B, N, C) to logits (B, classes)."""
        if self.spec.pool == "avg":
            pooled = self.fc_norm(x[:, self.spec.prefix :].mean(1))
        else:
            pooled = self.norm(x[:, : 1 + self.spec.distillation_token])
            if self.spec.distillation_token:
                logits: Tensor = (self.head(pooled[:, 0]) + self.head_dist(pooled[:, 1])) / 2
                return logits
            pooled = pooled[:, 0]
        logits = self.head(pooled)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) to logits (B, classes), all tokens kept."""
        x = self.embed(images)
        for block in self.blocks:
            x, _ = block(x)
        return self.classify(x)


def initialise(model: VisionTransformer, generator: torch.Generator | None = None) -> None:
    """Random weights for training from scratch: truncated normal (0.02), zero biases, as timm does for its ViTs."""
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, model.spec.layer_scale_init)
        elif parameter.ndim >= 2:
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
        elif not name.endswith("norm.weight") and "norm" not in name.split(".")[-2]:
            nn.init.zeros_(parameter)
