"""What a plain vision transformer *is*: shapes, parameters and arithmetic, by name. Never imports torch.

The planner and the profiler reason about models through this module alone; `edgetune.model.vit` builds the same thing
in torch. Names follow timm, because its checkpoints are the field's common currency.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from edgetune.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_MEAN, INCEPTION_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


class Parameter(msgspec.Struct, frozen=True):
    """One tensor of the model: its timm name and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


class ViTSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A plain vision transformer: pre-norm blocks of attention and MLP over patch tokens behind a few prefix tokens.

    `image_size` is the side in pixels the position embeddings were made for; `at` moves a spec to another one.
    """

    name: str
    width: int
    depth: int
    heads: int
    patch_size: int
    image_size: int = 224
    mlp_width: int = 0  # 0: four times the width
    classes: int = 1000
    class_token: bool = True
    distillation_token: bool = False
    register_tokens: int = 0
    position_on_prefix: bool = True  # False where position embeddings cover the patches only (DINOv2 with registers)
    layer_scale: bool = False
    layer_scale_init: float = 1e-5
    pool: Literal["token", "avg"] = "token"  # what the classifier reads: the class token, or the patches' mean
    norm_eps: float = 1e-6
    mean: tuple[float, float, float] = INCEPTION_MEAN
    std: tuple[float, float, float] = INCEPTION_STD
    hub_id: str | None = None  # repository of the pre-trained weights; None where none were published

    @property
    def hidden(self) -> int:
        """Width of the MLP's hidden layer."""
        return self.mlp_width or 4 * self.width

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patch tokens of one image."""
        return self.grid**2

    @property
    def prefix(self) -> int:
        """Tokens before the patches (class, distillation, registers); these are never dropped."""
        return int(self.class_token) + int(self.distillation_token) + self.register_tokens

    @property
    def tokens(self) -> int:
        """Length of the sequence that enters block 0."""
        return self.prefix + self.patches

    @property
    def prefix_positions(self) -> int:
        """Position embeddings before those of the patches."""
        return self.prefix if self.position_on_prefix else 0

    @property
    def final_norm(self) -> str:
        """The last norm, in timm's words: `norm` before pooling, `fc_norm` after it where patches are averaged."""
        return "norm" if self.pool == "token" else "fc_norm"

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The classifier layers, in timm's words."""
        return ("head", "head_dist") if self.distillation_token else ("head",)

    @property
    def readers(self) -> int | None:
        """How many leading tokens the classifier reads; None where it reads them all."""
        return None if self.pool == "avg" else len(self.classifiers)

    def at(self, image_size: int | None = None, classes: int | None = None) -> ViTSpec:
        """The same architecture at another image size (pixels) or number of classes.

        Raises:
            InputError: the image size is not a positive multiple of the patch size.
        """
        image_size = image_size or self.image_size
        if image_size < self.patch_size or image_size % self.patch_size:
            below = max(self.patch_size, image_size // self.patch_size * self.patch_size)
            raise InputError(
                f"--image-size {image_size} is not a multiple of {self.name}'s patch size {self.patch_size};"
                f" use {below} or {below + self.patch_size}."
            )
        return msgspec.structs.replace(self, image_size=image_size, classes=classes or self.classes)

    def embedding_parameters(self) -> Iterator[Parameter]:
        """Patch projection, prefix tokens and position embeddings."""
        if self.class_token:
            yield Parameter("cls_token", (1, 1, self.width))
        if self.distillation_token:
            yield Parameter("dist_token", (1, 1, self.width))
        if self.register_tokens:
            yield Parameter("reg_token", (1, self.register_tokens, self.width))
        yield Parameter("pos_embed", (1, self.prefix_positions + self.patches, self.width))
        yield Parameter("patch_embed.proj.weight", (self.width, 3, self.patch_size, self.patch_size))
        yield Parameter("patch_embed.proj.bias", (self.width,))

    def block_parameters(self, index: int) -> tuple[Parameter, ...]:
        """The tensors of block `index`, in the order of the forward pass."""
        return _block_parameters(self.width, self.hidden, self.layer_scale, index)

    def head_parameters(self) -> Iterator[Parameter]:
        """Final norm and classifier(s)."""
        yield Parameter(self.final_norm + ".weight", (self.width,))
        yield Parameter(self.final_norm + ".bias", (self.width,))
        for head in self.classifiers:
            yield Parameter(head + ".weight", (self.classes, self.width))
            yield Parameter(head + ".bias", (self.classes,))

    def parameters(self) -> Iterator[Parameter]:
        """Every tensor of the model, under timm's name for it."""
        yield from self.embedding_parameters()
        for index in range(self.depth):
            yield from self.block_parameters(index)
        yield from self.head_parameters()

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        return _parameter_count(self)

    def embed_flops(self) -> int:
        """Forward FLOPs of the patch embedding for one image (a fused multiply-add counts two)."""
        return 2 * self.patches * self.width * 3 * self.patch_size**2

    def block_flops(self, tokens: int) -> BlockFlops:
        """Forward FLOPs of one block on one image of `tokens` tokens, prefix included; matrix products only."""
        width, hidden = self.width, self.hidden
        projections = 2 * tokens * (4 * width * width + 2 * width * hidden)
        attention = 4 * tokens * tokens * width
        return BlockFlops(projections, attention)

    def head_flops(self) -> int:
        """Forward FLOPs of the classifier for one image."""
        return 2 * self.width * self.classes * (2 if self.distillation_token else 1)


class BlockFlops(NamedTuple):
    """Forward FLOPs of one block, split by what the backward pass makes of them.

    A product with a weight costs its forward FLOPs once more to pass the gradient on, and once more for the weight
    gradient; a product of two activations (attention) costs twice its forward FLOPs to pass the gradient on.
    """

    projections: int
    attention: int

    @property
    def forward(self) -> int:
        """Forward pass."""
        return self.projections + self.attention

    @property
    def pass_gradient(self) -> int:
        """Backward pass to the block's input alone."""
        return self.projections + 2 * self.attention

    @property
    def weight_gradient(self) -> int:
        """Gradients of the block's weights, given the gradients of its activations."""
        return self.projections


@lru_cache(maxsize=512)
def _block_parameters(width: int, hidden: int, layer_scale: bool, index: int) -> tuple[Parameter, ...]:
    """See `ViTSpec.block_parameters`; a search asks for the same ones thousands of times."""
    scale = ((width,),) if layer_scale else ()
    shapes = [
        ("norm1.weight", (width,)),
        ("norm1.bias", (width,)),
        ("attn.qkv.weight", (3 * width, width)),
        ("attn.qkv.bias", (3 * width,)),
        ("attn.proj.weight", (width, width)),
        ("attn.proj.bias", (width,)),
        *(("ls1.gamma", shape) for shape in scale),
        ("norm2.weight", (width,)),
        ("norm2.bias", (width,)),
        ("mlp.fc1.weight", (hidden, width)),
        ("mlp.fc1.bias", (hidden,)),
        ("mlp.fc2.weight", (width, hidden)),
        ("mlp.fc2.bias", (width,)),
        *(("ls2.gamma", shape) for shape in scale),
    ]
    return tuple(Parameter(f"blocks.{index}.{name}", shape) for name, shape in shapes)


@lru_cache(maxsize=64)
def _parameter_count(spec: ViTSpec) -> int:
    return sum(parameter.count for parameter in spec.parameters())
