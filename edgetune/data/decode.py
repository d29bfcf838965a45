"""A file to pixels, within a bound.

Headers are read before pixels. A baseline JPEG is decoded at an eighth, a quarter or half its size where that is enough
(libjpeg does it in the transform, at no cost in memory), so a 400-megapixel scan is no problem; formats that only
decode whole are refused above a bound. Every failure is one exception that says what is wrong with the file.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from edgetune.errors import EdgetuneError, MissingDependencyError

try:
    from PIL import Image, UnidentifiedImageError
    from PIL.JpegImagePlugin import JpegImageFile
except ModuleNotFoundError:
    raise MissingDependencyError("pillow", "torch", "reading images") from None

if TYPE_CHECKING:
    from typing import BinaryIO

MOST_PIXELS = 1 << 25  # 33.5 megapixels: 96 MiB of RGB, and as much again while a palette or an alpha channel goes

_JPEG = b"\xff\xd8\xff"
# Of a pixel: in memory by mode, where it isn't four; what a progressive JPEG's decoder holds; what others hold in all.
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}
_COEFFICIENTS_BYTES, _DECODER_BYTES = 6, {"WEBP": 16, "AVIF": 10}
_DEEP_GREY_BYTES, _COMPRESSED_TIFF_BYTES = 14, 8  # floats meanwhile; libtiff's own copy
_WITH_ALPHA = frozenset(("RGBA", "LA", "PA", "RGBa"))
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(EdgetuneError):
    """A file that can't be decoded. The message is the reason alone; who reads the file adds its name."""

    exit_code = 2


def decode(path: str, enough_px: int, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """The image in a file: 8-bit RGB, upright.

    Args:
        path: any format Pillow reads; of several frames, the first.
        enough_px: sides of this many pixels suffice; a JPEG is decoded at the smallest scale that has them.
        most_pixels: the most that are ever decoded.

    Raises:
        UnreadableImageError: no image, a truncated one, or one above `most_pixels` that can't be decoded scaled.
    """
    try:
        with open(path, "rb") as handle:
            image = _open(handle, enough_px)
            width, height = image.size
            if width * height > most_pixels:
                raise UnreadableImageError(f"{width} × {height} pixels, too large to decode; make it smaller")
            image.load()  # before anything else asks for pixels: Pillow raises what is wrong with them only once
            orientation = _orientation(image)
            image = to_rgb(image)
    except (UnreadableImageError, MemoryError):
        raise
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error).split(" <_io")[0]) from None
    except Exception as error:  # what a decoder makes of a damaged file is any exception at all
        raise UnreadableImageError(f"damaged: {error}") from None
    return image.transpose(orientation) if orientation is not None else image


def decoding_bytes(path: str, enough_px: int, most_pixels: int = MOST_PIXELS) -> int:
    """Memory that `decode` takes for a file at once, its pixels and their copies, by the header alone.

    Pillow's pixels of more than one channel have four bytes. An orientation that a PNG has behind its pixels is not
    seen. 0 for what can't be decoded, which is left out of batches.
    """
    try:
        with open(path, "rb") as handle:
            image = _open(handle, enough_px)
            pixels = image.width * image.height
            if pixels > most_pixels:
                return 0
            each = whole = _PIXEL_BYTES.get(image.mode, 4)
            if image.mode in _WITH_ALPHA or "transparency" in image.info:
                each = whole + 9  # as RGBA, its mask, and white below it
            elif _is_deep_grey(image):
                each = _DEEP_GREY_BYTES
            elif image.mode != "RGB":
                each = whole + 4
            if (image.format != "PNG" or "exif" in image.info) and _orientation(image) is not None:
                each = max(each, 8)
            if image.info.get("progressive"):
                each = max(each, whole + _COEFFICIENTS_BYTES)
            if image.format == "TIFF" and image.info.get("compression", "raw") != "raw":
                each = max(each, _COMPRESSED_TIFF_BYTES)
            return pixels * max(each, _DECODER_BYTES.get(image.format or "", 0))
    except Exception:  # as in `decode`
        return 0


def _open(handle: BinaryIO, enough_px: int) -> Image.Image:
    """Read the header, and have a JPEG decoded small. Pillow's own limit would refuse what is large before that."""
    is_jpeg = handle.read(len(_JPEG)) == _JPEG
    handle.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sizes and odd metadata; the bound here is lower
        try:
            if not is_jpeg:
                return Image.open(handle)
            image = JpegImageFile(handle)
            if not image.info.get("progressive"):  # that is held whole, as coefficients, whatever the scale
                image.draft("RGB", (enough_px, enough_px))
            return image
        except UnidentifiedImageError:
            raise UnreadableImageError("not an image") from None
        except Image.DecompressionBombError:
            raise UnreadableImageError("too many pixels to decode; make it smaller") from None


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """How to turn the image upright, as the camera noted it; damaged metadata is no reason to lose an image."""
    if image.format == "TIFF":  # turned when it was loaded
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB from any mode: transparency over white, and deep grey scales brought to 8 bits and not clipped."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if _is_deep_grey(image):
        return _from_deep_grey(image)
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, 32 bits or floats: 16 bits by their full range, others by the one their largest value shows."""
    values = np.asarray(image).astype(np.float32)
    top = float(values.max(initial=0.0))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        full = 65535.0
    else:
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        full = next((bound for bound in ranges if top <= bound), top)
    return Image.fromarray((values * (255.0 / full)).clip(0, 255).round().astype(np.uint8)).convert("RGB")
