"""What reading an image costs, by the bytes of its file and the values of what a model gets; run in the child only."""

from __future__ import annotations

import io
import random
import tempfile
from pathlib import Path

from edgetune.profile.probes import Bench

# (side of the photo, side of what the model gets): large and shrunk much, small and shrunk little
_LARGE, _SMALL = (1024, 64), (128, 128)
_QUALITY = 88


def decode_rates(bench: Bench) -> dict[str, float]:
    """`decode_bytes_per_s` and `render_values_per_s` of `schema.Compute`: two images, two unknowns.

    Raises:
        ImportError: Pillow is missing.
        OSError: nothing can be written here.
    """
    from edgetune.data.preprocess import normalise, read

    seconds, file_bytes, values = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for photo_px, image_px in (_LARGE, _SMALL):
            path = Path(folder) / f"{photo_px}.jpg"
            path.write_bytes(_photo(photo_px))
            rng = random.Random(0)
            scale = [0.5, 0.5, 0.5]

            def once(name: str = str(path), side: int = image_px) -> object:
                return normalise(read(name, side, rng)[None], scale, scale)  # noqa: B023 - called before it changes

            seconds.append(bench.time(once).seconds)
            file_bytes.append(path.stat().st_size)
            values.append(3 * image_px**2)
    # seconds = bytes · a + values · b
    determinant = file_bytes[0] * values[1] - file_bytes[1] * values[0]
    per_byte = (seconds[0] * values[1] - seconds[1] * values[0]) / determinant
    per_value = (file_bytes[0] * seconds[1] - file_bytes[1] * seconds[0]) / determinant
    tiniest = 1e-12  # noise may not make a cost negative
    return {"decode_bytes_per_s": 1 / max(tiniest, per_byte), "render_values_per_s": 1 / max(tiniest, per_value)}


def _photo(side: int) -> bytes:
    """A JPEG with about as many bytes a pixel as a photo's: smoothed noise, and a little that is not."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
    fine = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(fine + rng.integers(-8, 9, fine.shape), 0, 255).astype(np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=_QUALITY)
    return written.getvalue()
