"""Write graphs to a folder, in a process of its own; its arguments are the folder and the order."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from edgetune.files import write_atomically
from edgetune.model.spec import ViTSpec
from edgetune.schema import LoraPlan
from edgetune.train.onnx.graphs import builders


class Order(msgspec.Struct, frozen=True):
    """What graphs are wanted."""

    spec: ViTSpec
    optimizer: str
    lora: LoraPlan | None


def write_graphs(folder: Path, order: Order) -> list[Path]:
    """Write every graph that an engine may ask for; the files.

    Raises:
        StorageError: the folder can't be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scale = order.lora.alpha / order.lora.rank if order.lora else None
    written = []
    for name, builder in builders(order.spec, order.optimizer, scale).items():
        written.append(folder / f"{name}.onnx")
        write_atomically(written[-1], builder().model(name).SerializeToString())
    return written


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_graphs(target, msgspec.json.decode(sys.argv[2], type=Order))
    write_atomically(target / "written", b"")
