"""Small image folders and damaged files, made on the spot."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("no deadline", deadline=None, max_examples=50)  # boards and busy machines are slow
settings.load_profile("no deadline")


def picture(seed: int, width: int = 20, height: int = 16, mode: str = "RGB") -> Image.Image:
    """A smooth random picture."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def write_folder(root: Path, counts: dict[str, int], suffix: str = ".png") -> Path:
    """Images numbered from 0 in folders: `{"train/cat": 3}`."""
    for number, (name, count) in enumerate(counts.items()):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture(100 * number + index).save(folder / f"{index}{suffix}")
    return root


def touch(root: Path, *names: str) -> Path:
    """Empty files; enough for what opens none."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def huge_jpeg(side: int) -> bytes:
    """A grey baseline JPEG of side × side pixels, written without ever holding them.

    In Pillow's Huffman tables a block equal to its neighbour is the six bits 001010, four blocks are three bytes.
    """
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 128).save(buffer, "JPEG")
    small = bytearray(buffer.getvalue())
    frame = small.index(b"\xff\xc0")
    small[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    scan = small.index(b"\xff\xda")
    start = scan + 2 + struct.unpack(">H", small[scan + 2 : scan + 4])[0]
    blocks = ((side + 7) // 8) ** 2
    return bytes(small[:start]) + b"\x28\xa2\x8a" * (blocks // 4 + 1) + b"\xff\xd9"


def huge_png(side: int) -> bytes:
    """The beginning of a PNG of side × side pixels; whoever decodes it has already gone wrong."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes with validation images."""
    return write_folder(tmp_path / "pets", {"train/cat": 7, "train/dog": 6, "val/cat": 3, "val/dog": 2})
