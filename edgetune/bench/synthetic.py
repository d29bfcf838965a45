"""Images and weights made from a seed, for workloads that measure time and memory; run as a process of its own."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

_COARSE = 8  # pixels of noise along a side, before it is blown up: what a JPEG keeps small and a decoder finds easy
_QUALITY = 85


def make_images(data: Path, *, image_size: int, classes: int, train: int, val: int, seed: int) -> None:
    """Write `train/<class>/*` and `val/<class>/*`: a colour for each class under smooth noise, as small JPEG files."""
    rng = np.random.default_rng(seed)
    colours = rng.uniform(60, 200, (classes, 3))
    data.parent.mkdir(parents=True, exist_ok=True)
    whole = Path(tempfile.mkdtemp(prefix=f".{data.name}.", dir=data.parent))
    try:
        for part, count in (("train", train), ("val", val)):
            for index in range(count):
                label = index % classes
                folder = whole / part / f"class{label}"
                folder.mkdir(parents=True, exist_ok=True)
                coarse = colours[label] + rng.normal(0, 40, (_COARSE, _COARSE, 3))
                image = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
                image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
                image.save(folder / f"{index:04}.jpg", quality=_QUALITY)
        whole.chmod(0o755)  # mkdtemp's is private
        shutil.rmtree(data, ignore_errors=True)
        os.replace(whole, data)
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def make_weights(path: Path, *, model: str, image_size: int, classes: int, seed: int) -> None:
    """Write random weights of a model, as for training from scratch."""
    import torch

    from edgetune.model.registry import find_spec
    from edgetune.model.vit import VisionTransformer, initialise
    from edgetune.model.weights import save_weights

    spec = find_spec(model).at(image_size, classes)
    built = VisionTransformer(spec)
    initialise(built, torch.Generator().manual_seed(seed))
    save_weights(path, built, {"model": model, "edgetune": f"random weights, seed {seed}"})


def main(arguments: list[str]) -> None:
    """Make both, the weights last: where they are, everything is."""
    model, *numbers, data, weights = arguments
    image_size, classes, train, val, seed = map(int, numbers)
    make_images(Path(data), image_size=image_size, classes=classes, train=train, val=val, seed=seed)
    make_weights(Path(weights), model=model, image_size=image_size, classes=classes, seed=seed)


if __name__ == "__main__":
    main(sys.argv[1:])
