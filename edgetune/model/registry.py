"""The models edgetune knows by name: plain ViTs, under timm's names. Never imports torch.

A name may carry a pre-training tag after a dot, as in timm: `vit_small_patch16_224.dino` is the architecture
`vit_small_patch16_224` with the weights `timm/vit_small_patch16_224.dino` of the hub. Without one it is the tag that
timm would choose. Left out are the architectures that are not plain: windows, hierarchies, convolutional stems, rotary
positions, gated MLPs, attention pooling.

ViT: arXiv 2010.11929 and 2106.10270; DeiT: 2012.12877; DeiT III: 2204.07118; DINOv2: 2304.07193; registers: 2309.16588.
The `gap` models come from timm's own "searching for better baselines": no class token, patches averaged.
"""

from __future__ import annotations

import difflib
from typing import Any

import msgspec

from edgetune.errors import InputError
from edgetune.model.spec import IMAGENET_MEAN, IMAGENET_STD, ViTSpec

BUNDLED_MODEL = "vit_nano_patch8_64"

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "medium": {"width": 512, "depth": 12, "heads": 8},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}
_GAP_SIZES: dict[str, dict[str, Any]] = {
    "wee": {"width": 256, "depth": 14, "heads": 4, "mlp_width": 1280},
    "little": {"width": 320, "depth": 14, "heads": 5, "mlp_width": 1792},
    "medium": {"width": 512, "depth": 12, "heads": 8},
    "mediumd": {"width": 512, "depth": 20, "heads": 8},
    "betwixt": {"width": 640, "depth": 12, "heads": 10},
}
_IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
# (size, patch, image, tag of the default weights)
_VIT = (
    ("tiny", 16, 224, "augreg_in21k_ft_in1k"),
    ("tiny", 16, 384, "augreg_in21k_ft_in1k"),
    ("small", 32, 224, "augreg_in21k_ft_in1k"),
    ("small", 32, 384, "augreg_in21k_ft_in1k"),
    ("small", 16, 224, "augreg_in21k_ft_in1k"),
    ("small", 16, 384, "augreg_in21k_ft_in1k"),
    ("small", 8, 224, "dino"),
    ("base", 32, 224, "augreg_in21k_ft_in1k"),
    ("base", 32, 384, "augreg_in21k_ft_in1k"),
    ("base", 16, 224, "augreg2_in21k_ft_in1k"),
    ("base", 16, 384, "augreg_in21k_ft_in1k"),
    ("base", 8, 224, "augreg2_in21k_ft_in1k"),
    ("large", 32, 384, "orig_in21k_ft_in1k"),
    ("large", 16, 224, "augreg_in21k_ft_in1k"),
    ("large", 16, 384, "augreg_in21k_ft_in1k"),
)
_DEIT3 = (("small", 224), ("small", 384), ("medium", 224), ("base", 224), ("base", 384), ("large", 224), ("large", 384))
# (size, registers, image, tag)
_GAP = (
    ("wee", 1, 256, "sbb_in1k"),
    ("little", 1, 256, "sbb_in12k_ft_in1k"),
    ("little", 4, 256, "sbb_in1k"),
    ("medium", 1, 256, "sbb_in1k"),
    ("medium", 4, 256, "sbb_in12k_ft_in1k"),
    ("mediumd", 4, 256, "sbb2_e200_in12k_ft_in1k"),
    ("mediumd", 4, 384, "sbb2_e200_in12k_ft_in1k"),
    ("betwixt", 1, 256, "sbb_in1k"),
    ("betwixt", 4, 256, "sbb2_e200_in12k_ft_in1k"),
    ("betwixt", 4, 384, "sbb2_e200_in12k_ft_in1k"),
)
# How images were normalised is a matter of the weights: these tags differ from the rest of their family.
_NORMALISED_AS_IMAGENET = frozenset({"dino", "mae"})
_NORMALISED_AS_CLIP = frozenset({"bamboo"})
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _register() -> dict[str, ViTSpec]:
    specs: list[ViTSpec] = [
        ViTSpec(name=BUNDLED_MODEL, width=192, depth=6, heads=3, patch_size=8, image_size=64, classes=10)
    ]

    def add(name: str, tag: str, **settings: Any) -> None:
        specs.append(_tagged(ViTSpec(name=name, **settings), tag))

    for size, patch, image, tag in _VIT:
        add(f"vit_{size}_patch{patch}_{image}", tag, patch_size=patch, image_size=image, **_SIZES[size])
    for size, image in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384)):
        common = _IMAGENET | _SIZES[size] | {"patch_size": 16, "image_size": image}
        add(f"deit_{size}_patch16_{image}", "fb_in1k", **common)
        add(f"deit_{size}_distilled_patch16_{image}", "fb_in1k", distillation_token=True, **common)
    for size, image in _DEIT3:
        scale = {"layer_scale": True, "layer_scale_init": 1e-6, "position_on_prefix": False}
        common = _IMAGENET | _SIZES[size] | scale
        add(f"deit3_{size}_patch16_{image}", "fb_in1k", patch_size=16, image_size=image, **common)
    for size in ("small", "base", "large"):
        common = _IMAGENET | _SIZES[size] | {"patch_size": 14, "image_size": 518, "layer_scale": True}
        add(f"vit_{size}_patch14_dinov2", "lvd142m", **common)
        registers = {"register_tokens": 4, "position_on_prefix": False}
        add(f"vit_{size}_patch14_reg4_dinov2", "lvd142m", **common, **registers)
    for size, registers_, image, tag in _GAP:
        settings = _GAP_SIZES[size] | {"class_token": False, "position_on_prefix": False, "layer_scale": True}
        name = f"vit_{size}_patch16_reg{registers_}_gap_{image}"
        add(name, tag, patch_size=16, image_size=image, register_tokens=registers_, pool="avg", **settings)
    return {spec.name: spec for spec in specs}


def _tagged(spec: ViTSpec, tag: str) -> ViTSpec:
    """`spec` with the weights `tag` of the hub and their way of normalising images."""
    mean, std = spec.mean, spec.std
    if tag in _NORMALISED_AS_IMAGENET:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    elif tag in _NORMALISED_AS_CLIP:
        mean, std = _CLIP_MEAN, _CLIP_STD
    return msgspec.structs.replace(spec, mean=mean, std=std, hub_id=f"timm/{spec.name}.{tag}")


_SPECS = _register()


def list_models() -> list[str]:
    """Names that `find_spec` knows, sorted."""
    return sorted(_SPECS)


def find_spec(name: str) -> ViTSpec:
    """The spec of a model by its timm name, with or without a pre-training tag (`.augreg_in21k`).

    Raises:
        InputError: no plain ViT of that name is known.
    """
    architecture, _, tag = name.partition(".")
    if architecture in _SPECS:
        spec = _SPECS[architecture]
        if not tag:
            return spec
        if spec.hub_id is None:
            raise InputError(f"--model {name}: {architecture} comes with edgetune and has no tag; drop the .{tag}.")
        return _tagged(spec, tag)
    near = difflib.get_close_matches(architecture, _SPECS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "use one such as deit_tiny_patch16_224."
    raise InputError(f"--model {name} is not a plain vision transformer edgetune knows: {hint}")
