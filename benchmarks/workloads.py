"""The image folders of the benchmark's workloads, the same on every machine: every draw has a seed.

    python benchmarks/workloads.py w1 --cifar PATH/TO/cifar10 --data runs/data/w1 --tune runs/data/w1-tune
    python benchmarks/workloads.py fashion --data runs/data/fashion --tune runs/data/fashion-tune
    python benchmarks/workloads.py digits --data runs/data/digits --tune runs/data/digits-tune
    python benchmarks/workloads.py synthetic --data runs/data/synthetic

W1 is photos of CIFAR-10 from an image folder. W2 and W3 measure time and memory only and take `synthetic`. W4 is
Fashion-MNIST (Debian's package dataset-fashion-mnist; `--idx` names the folder if it was unpacked elsewhere) and the
bundled digits. A `--tune` folder holds the training images of `--data` and no others, a fifth of each class as its
validation images: learning rates are chosen there, so that the validation images of `--data` choose nothing.
"""

from __future__ import annotations

import argparse
import gzip
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

W1_TRAIN, W1_VAL = 250, 200  # images per class
FASHION_TRAIN, FASHION_VAL = 500, 500
FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
FASHION_IDX = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
TUNE_VAL_SHARE = 0.2
SYNTHETIC_COLOURS = {"blue": (70, 90, 190), "green": (80, 180, 90), "grey": (128, 128, 128), "red": (190, 80, 70)}
SYNTHETIC_TILE_PX = 16


def prepare_w1(cifar: Path, data: Path, seed: int = 0) -> None:
    """Copy 250 training images a class, drawn, and the first 200 validation images out of a CIFAR-10 folder."""
    rng = random.Random(seed)
    _refuse_filled(data)
    for part in ("train", "val"):
        for folder in _subfolders(cifar / part):
            images = sorted(folder.iterdir())
            _copy(rng.sample(images, W1_TRAIN) if part == "train" else images[:W1_VAL], data / part / folder.name)


def prepare_fashion(
    idx: Path, data: Path, seed: int = 0, train_per_class: int = FASHION_TRAIN, val_per_class: int = FASHION_VAL
) -> None:
    """Draw as many images of each class from the training file, and from the test file for validation."""
    rng = random.Random(seed)
    _refuse_filled(data)
    for part, prefix, count in (("train", "train", train_per_class), ("val", "t10k", val_per_class)):
        images = read_idx(_find(idx, f"{prefix}-images-idx3-ubyte.gz"))
        labels = read_idx(_find(idx, f"{prefix}-labels-idx1-ubyte.gz"))
        for label, name in enumerate(FASHION_CLASSES):
            folder = data / part / name
            folder.mkdir(parents=True)
            for index in sorted(rng.sample(np.flatnonzero(labels == label).tolist(), count)):
                Image.fromarray(images[index]).save(folder / f"{index:05d}.png")


def prepare_digits(data: Path) -> None:
    """Unpack the digits that edgetune ships."""
    from edgetune.data.samples import unpack

    unpack("digits", data)


def prepare_synthetic(data: Path, train: int = 64, val: int = 16, side: int = 224, seed: int = 0) -> None:
    """Colour tiles around a colour of the class: something to learn, and next to nothing to decode."""
    rng = np.random.default_rng(seed)
    _refuse_filled(data)
    tiles = -(-side // SYNTHETIC_TILE_PX)
    for part, count in (("train", train), ("val", val)):
        for index in range(count):
            name = sorted(SYNTHETIC_COLOURS)[index % len(SYNTHETIC_COLOURS)]
            noise = rng.normal(0, 40, (tiles, tiles, 3))
            small = np.clip(np.array(SYNTHETIC_COLOURS[name]) + noise, 0, 255).astype(np.uint8)
            pixels = small.repeat(SYNTHETIC_TILE_PX, 0).repeat(SYNTHETIC_TILE_PX, 1)[:side, :side]
            (data / part / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(data / part / name / f"{index:05d}.png")


def split_for_tuning(data: Path, tune: Path, seed: int = 0) -> None:
    """Make a folder of the training images of `data` alone, a fifth of each class held out to choose with."""
    rng = random.Random(seed)
    _refuse_filled(tune)
    for folder in _subfolders(data / "train"):
        images = sorted(folder.iterdir())
        held = set(rng.sample(images, round(TUNE_VAL_SHARE * len(images))))
        _copy([image for image in images if image not in held], tune / "train" / folder.name)
        _copy(sorted(held), tune / "val" / folder.name)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file of bytes, the format of MNIST and its kin."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is no IDX file of bytes; give the files of the package dataset-fashion-mnist.")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    values: NDArray[np.uint8] = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    return values.reshape([int(side) for side in shape])


def _find(folder: Path, name: str) -> Path:
    """The file of that name, at any depth: an unpacked package has folders of its own."""
    found = sorted(folder.rglob(name))
    if not found:
        raise SystemExit(f"{folder} holds no {name}: install dataset-fashion-mnist or name its folder with --idx.")
    return found[0]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _copy(images: list[Path], target: Path) -> None:
    target.mkdir(parents=True)
    for image in images:
        shutil.copyfile(image, target / image.name)


def _refuse_filled(folder: Path) -> None:
    """Images of an earlier draw would stay among the new ones."""
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty; remove it or name another folder.")


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="workload", required=True)

    def add(name: str, tune: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name)
        command.add_argument("--data", type=Path, required=True, help="folder to make")
        if tune:
            command.add_argument("--tune", type=Path, help="second folder to make, for choosing learning rates")
        return command

    add("w1").add_argument("--cifar", type=Path, required=True, help="CIFAR-10 as an image folder")
    add("fashion").add_argument("--idx", type=Path, default=FASHION_IDX, help="folder with the .gz files, at any depth")
    add("digits")
    synthetic = add("synthetic", tune=False)
    synthetic.add_argument("--train", type=int, default=64)
    synthetic.add_argument("--val", type=int, default=16)
    synthetic.add_argument("--side", type=int, default=224)
    options: dict[str, Any] = vars(parser.parse_args())
    workload, tune = options.pop("workload"), options.pop("tune", None)
    makers: dict[str, Callable[..., None]] = {
        "w1": prepare_w1,
        "fashion": prepare_fashion,
        "digits": prepare_digits,
        "synthetic": prepare_synthetic,
    }
    makers[workload](**options)
    if tune is not None:
        split_for_tuning(options["data"], tune)


if __name__ == "__main__":
    main()
