"""A folder that timm opens as a model of its own, with nothing of edgetune installed.

`config.json` is in the form timm keeps on the hub: the architecture, the arguments it is built with, and how images are
prepared. The folder can be pushed to the hub as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgetune.__about__ import __version__
from edgetune.errors import InputError
from edgetune.files import atomic_folder
from edgetune.model.checkpoint import Checkpoint
from edgetune.model.registry import BUNDLED_MODEL
from edgetune.model.spec import ViTSpec
from edgetune.model.weights import save_weights
from edgetune.schema import ExportReport, now

# What timm does not know by name is one of its architectures with other sizes.
_BUILT_FROM = "vit_tiny_patch16_224"
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_FILES = frozenset({_WEIGHTS, _CONFIG})


def export_timm(checkpoint: Checkpoint, out: Path) -> ExportReport:
    """Write `checkpoint` as a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    Raises:
        InputError: `out` is a file, or a folder that holds something else.
    """
    if out.exists() and (not out.is_dir() or any(path.name not in _FILES for path in out.iterdir())):
        raise InputError(f"--out {out} exists and is no export for timm; name a new folder.")
    model = checkpoint.load()
    config = timm_config(checkpoint.spec, checkpoint.classes)
    metadata = {"format": "pt", "classes": checkpoint.classes, "edgetune_version": __version__}
    with atomic_folder(out) as folder:
        save_weights(folder / _WEIGHTS, model, metadata)
        (folder / _CONFIG).write_bytes(json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n")
    return ExportReport(
        format="timm",
        path=str(out),
        size_bytes=(out / _WEIGHTS).stat().st_size,
        how_to_use=f'timm.create_model("local-dir:{out}", pretrained=True)',
        edgetune_version=__version__,
        created=now(),
    )


def timm_config(spec: ViTSpec, classes: list[str]) -> dict[str, Any]:
    """`config.json` for timm. `model_args` hold what differs from the architecture as timm has it."""
    arguments: dict[str, Any] = {"img_size": spec.image_size}
    architecture = spec.name
    if spec.name == BUNDLED_MODEL:
        architecture = _BUILT_FROM
        arguments |= {
            "patch_size": spec.patch_size,
            "embed_dim": spec.width,
            "depth": spec.depth,
            "num_heads": spec.heads,
        }
    side = [3, spec.image_size, spec.image_size]
    return {
        "architecture": architecture,
        "num_classes": spec.classes,
        "num_features": spec.width,
        "global_pool": spec.pool,
        "label_names": classes,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "edgetune",
            "custom_load": False,
            "num_classes": spec.classes,
            "input_size": side,
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": spec.mean,
            "std": spec.std,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": list(spec.classifiers) if len(spec.classifiers) > 1 else spec.classifiers[0],
        },
    }
