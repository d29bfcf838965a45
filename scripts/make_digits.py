"""Make `edgetune/bundled/digits.zip`, the image folder that `edgetune` can be tried on without a network.

    pip install scikit-learn pillow
    python scripts/make_digits.py --out edgetune/bundled/digits.zip

The UCI handwritten digits (E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, doi 10.24432/C50P49, CC BY 4.0), the 1,797 images of the test part that scikit-learn carries: 8 × 8 pixels,
0 to 16. They come writer by writer; the last 36 of each class validate, so that most validation digits are in hands the
training digits don't show. Pixels are spread over 0 to 255 and written as PNGs without compression, entries are sorted
and dated 1980: the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VAL_PER_CLASS = 36


def png(pixels: NDArray[np.float64]) -> bytes:
    """One image, (8, 8) values from 0 to 16, as an uncompressed 8-bit PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def main() -> None:
    """Write the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("edgetune/bundled/digits.zip"))
    arguments = parser.parse_args()

    from sklearn.datasets import load_digits  # type: ignore[import-not-found, unused-ignore]

    digits = load_digits()
    entries = {}
    for label in range(10):
        images = digits.images[digits.target == label]
        for index, image in enumerate(images):
            part = "val" if index >= len(images) - VAL_PER_CLASS else "train"
            entries[f"{part}/{label}/{index:03d}.png"] = png(image)
    with zipfile.ZipFile(arguments.out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name)  # dated 1980-01-01
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, entries[name])
    print(f"{arguments.out}: {len(entries)} images, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
