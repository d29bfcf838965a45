"""The models edgetune knows by name: plain ViTs, under timm's names. Never imports torch."""

from __future__ import annotations

import difflib
from typing import Any

from edgetune.errors import InputError
from edgetune.model.spec import IMAGENET_MEAN, IMAGENET_STD, ViTSpec

BUNDLED_MODEL = "vit_nano_patch8_64"

_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}
_IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def _register() -> dict[str, ViTSpec]:
    specs: list[ViTSpec] = [
        ViTSpec(name=BUNDLED_MODEL, width=192, depth=6, heads=3, patch_size=8, image_size=64, classes=10)
    ]
    for size, patch, image in (
        ("tiny", 16, 224),
        ("tiny", 16, 384),
        ("small", 32, 224),
        ("small", 32, 384),
        ("small", 16, 224),
        ("small", 16, 384),
        ("small", 8, 224),
        ("base", 32, 224),
        ("base", 32, 384),
        ("base", 16, 224),
        ("base", 16, 384),
        ("base", 8, 224),
        ("large", 32, 384),
        ("large", 16, 224),
        ("large", 16, 384),
    ):
        name = f"vit_{size}_patch{patch}_{image}"
        specs.append(ViTSpec(name=name, patch_size=patch, image_size=image, **_SIZES[size]))  # type: ignore[arg-type]
    for size, image in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384)):
        for distilled in (False, True):
            name = f"deit_{size}_{'distilled_' if distilled else ''}patch16_{image}"
            common = _IMAGENET | _SIZES[size]
            specs.append(
                ViTSpec(name=name, patch_size=16, image_size=image, distillation_token=distilled, **common)  # type: ignore[arg-type]
            )
    for size in ("small", "base", "large"):
        common = _IMAGENET | _SIZES[size] | {"patch_size": 14, "image_size": 518, "layer_scale": True}
        specs.append(ViTSpec(name=f"vit_{size}_patch14_dinov2", **common))
        specs.append(
            ViTSpec(name=f"vit_{size}_patch14_reg4_dinov2", register_tokens=4, position_on_prefix=False, **common)
        )
    return {spec.name: spec for spec in specs}


_SPECS = _register()


def list_models() -> list[str]:
    """Names that `find_spec` knows, sorted."""
    return sorted(_SPECS)


def find_spec(name: str) -> ViTSpec:
    """The spec of a model by its timm name; a pre-training tag (`.augreg_in21k`) is allowed and ignored.

    Raises:
        InputError: no plain ViT of that name is known.
    """
    architecture = name.split(".")[0]
    if architecture in _SPECS:
        return _SPECS[architecture]
    near = difflib.get_close_matches(architecture, _SPECS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`edgetune models` lists them."
    raise InputError(f"--model {name} is not a plain vision transformer edgetune knows: {hint}")
