from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from edgetune.data import decode as decode_module
from edgetune.data.decode import UnreadableImageError, decode, decoding_bytes
from edgetune.data.preprocess import most_to_decode
from edgetune.errors import MissingDependencyError

from .conftest import huge_jpeg, huge_png, picture


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return str(path)


TURNED = Image.Exif()
TURNED[0x0112] = 6


def levels(image):
    return np.asarray(image).astype(int)


def test_a_400_megapixel_jpeg_is_decoded_scaled(tmp_path):
    path = tmp_path / "huge.jpg"
    path.write_bytes(huge_jpeg(20_000))
    image = decode(str(path), 196)
    assert image.size == (2500, 2500)
    assert image.mode == "RGB"
    assert abs(levels(image) - 128).max() <= 1


def test_a_400_megapixel_png_is_named_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    path.write_bytes(huge_png(20_000))
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(UnreadableImageError, match="too many pixels"):
        decode(str(path), 196)
    path.write_bytes(huge_png(9_000))  # below Pillow's own limit
    with pytest.raises(UnreadableImageError, match="9000 × 9000 pixels, too large"):
        decode(str(path), 196)


DECODED = """
import sys
from edgetune.data.decode import decode
def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))
decode(sys.argv[1], 64)
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
before = status("VmRSS")
decode(sys.argv[2], 64)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no high-water mark to begin anew")
@pytest.mark.parametrize(
    ("mode", "name", "options"),
    [
        ("RGB", "a.jpg", {}),
        ("RGB", "a.jpg", {"progressive": True, "subsampling": 0}),
        ("RGB", "a.png", {"compress_level": 1}),
        ("RGBA", "a.png", {"compress_level": 1}),
        ("L", "a.png", {"compress_level": 1}),
        ("RGB", "turned.png", {"compress_level": 1, "exif": TURNED}),
        ("RGB", "a.tif", {"compression": "tiff_lzw"}),
        ("RGB", "a.webp", {"method": 0}),
    ],
)
def test_what_decoding_takes_is_known_from_the_header(tmp_path, mode, name, options):
    small, large = (
        saved(tmp_path, picture(0, side, side, mode), f"{side}-{name}", **options)
        for side in (64, 1200)  # the small one brings in what a first one does
    )
    foretold = decoding_bytes(large, 64)
    took = int(subprocess.run([sys.executable, "-c", DECODED, small, large], check=True, capture_output=True).stdout)
    assert 0.7 * foretold <= took + (256 << 10)
    assert took <= 1.12 * foretold + (256 << 10)
    assert decoding_bytes(large, 64, most_pixels=1000) == 0


def test_what_cannot_be_decoded_takes_nothing(tmp_path):
    (tmp_path / "text.jpg").write_text("this is no image")
    assert decoding_bytes(str(tmp_path / "text.jpg"), 64) == 0
    assert decoding_bytes(str(tmp_path / "missing.png"), 64) == 0
    (tmp_path / "huge.png").write_bytes(huge_png(9_000))
    assert decoding_bytes(str(tmp_path / "huge.png"), 64) == 0


def test_headers_are_all_that_is_read(tmp_path, monkeypatch):
    paths = [saved(tmp_path, picture(0, 300, 200, mode), f"{mode}.png") for mode in ("RGB", "RGBA", "L", "P")]
    paths.append(saved(tmp_path, picture(0, 300, 200), "a.jpg"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert decoding_bytes(paths[0], 64) == 4 * 300 * 200
    assert all(decoding_bytes(path, 64) > 0 for path in paths)


def test_the_largest_of_some_files_is_found_and_named(tmp_path):
    paths = [saved(tmp_path, picture(0, side, 10), f"{side}.png") for side in (20, 300, 40)]
    assert most_to_decode(paths, 32) == (4 * 300 * 10, paths[1])
    assert most_to_decode([], 32) == (0, "")


def test_a_progressive_jpeg_counts_whole(tmp_path):
    path = saved(tmp_path, picture(0, 400, 400), "slow.jpg", progressive=True)
    with pytest.raises(UnreadableImageError, match="400 × 400"):
        decode(path, 10, most_pixels=399 * 400)
    assert decode(path, 10).size == (400, 400)
    plain = saved(tmp_path, picture(0, 400, 400), "fast.jpg")
    assert decode(plain, 10, most_pixels=399 * 400).size == (50, 50)


def test_a_jpeg_keeps_the_pixels_asked_for(tmp_path):
    path = saved(tmp_path, picture(0, 640, 480), "a.jpg", quality=95)
    assert decode(path, 240).size == (320, 240)
    assert decode(path, 241).size == (640, 480)
    near = levels(decode(path, 240)) - levels(picture(0, 640, 480).resize((320, 240), Image.Resampling.BOX))
    assert abs(near).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, picture(1, 64, 40), "turned.jpg", exif=exif, quality=95)
    with Image.open(path) as plain:
        expected = ImageOps.exif_transpose(plain)
    assert np.array_equal(levels(decode(path, 1000)), levels(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.asarray(decode(saved(tmp_path, picture(1, 64, 40), "plain.png"), 1000))
    stored = Image.fromarray(upright)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that the tag undoes
    if orientation in back:
        stored = stored.transpose(Image.Transpose(back[orientation]))
    for name in ("turned.tiff", "turned.png"):
        path = saved(tmp_path, stored, name, exif=exif)
        assert np.array_equal(np.asarray(decode(path, 1000)), upright), name


@pytest.mark.parametrize("orientation", [None, 6])
def test_a_png_with_a_broken_stream_is_unreadable(tmp_path, orientation):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = saved(tmp_path, noise, "broken.png", exif=exif)
    content = bytearray((tmp_path / "broken.png").read_bytes())
    middle = content.index(b"IDAT") + 2000
    content[middle : middle + 40] = bytes(40)
    content[content.index(b"IDAT") + 4 : content.index(b"IDAT") + 6] = b"\xff\xff"  # the stream's own header
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(UnreadableImageError):
        decode(path, 64)


def test_damaged_metadata_loses_no_image(tmp_path):
    path = saved(tmp_path, picture(1), "odd.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor to tell anybody
        assert decode(path, 100).size == (20, 16)


def test_transparency_shows_white(tmp_path):
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    clear.putpixel((0, 0), (10, 20, 30, 255))
    for name, image in {
        "rgba.png": clear,
        "la.png": clear.convert("LA"),
        "palette.png": clear.quantize(4),
        "frame.gif": clear,
        "lossless.webp": clear,
    }.items():
        shown = decode(saved(tmp_path, image, name, **({"lossless": True} if "webp" in name else {})), 4)
        assert shown.mode == "RGB"
        assert (levels(shown)[3, 3] == 255).all(), name
        assert levels(shown)[0, 0].max() < 40, name


def test_every_mode_becomes_rgb(tmp_path):
    source = picture(2, 24, 24)
    grey = levels(source.convert("L"))
    for name, image, expected, off in [
        ("l.png", source.convert("L"), np.stack([grey] * 3, -1), 0),
        ("one.png", source.convert("1"), np.stack([levels(source.convert("1")) * 255] * 3, -1), 0),
        ("p.png", source.quantize(256), levels(source), 30),
        ("cmyk.jpg", source.convert("CMYK"), levels(source), 30),
        ("cmyk.tif", source.convert("CMYK"), levels(source), 1),
        ("deep.png", Image.fromarray((grey * 257).astype(np.uint16)), np.stack([grey] * 3, -1), 0),
        ("deep.tif", Image.fromarray((grey * 257).astype(np.uint16)), np.stack([grey] * 3, -1), 0),
        ("int.tif", Image.fromarray((grey * 257).astype(np.int32)), np.stack([grey] * 3, -1), 0),
        ("float.tif", Image.fromarray((grey / 255).astype(np.float32)), np.stack([grey] * 3, -1), 1),
        ("photo.webp", source, levels(source), 60),
        ("photo.bmp", source, levels(source), 0),
    ]:
        shown = decode(saved(tmp_path, image, name), 24)
        assert (shown.mode, shown.size) == ("RGB", (24, 24)), name
        assert abs(levels(shown) - expected).max() <= off, name


def test_empty_missing_and_foreign_files(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("this is no image")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    for name, reason in {
        "empty.jpg": "not an image",
        "text.jpg": "not an image",
        "dangling.png": "No such file",
    }.items():
        with pytest.raises(UnreadableImageError, match=reason):
            decode(str(tmp_path / name), 32)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.tif"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_files(tmp_path, name, share):
    rng = np.random.default_rng(0)
    path = saved(tmp_path, Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)), name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(UnreadableImageError) as caught:
        decode(path, 80)
    assert "\n" not in str(caught.value)


def encoded(format_):
    buffer = io.BytesIO()
    picture(3, 16, 16).save(buffer, format_)
    return buffer.getvalue()


ENCODED = [encoded(format_) for format_ in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "TGA", "PPM")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ENCODED), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=12))
def test_damage_is_one_kind_of_error(tmp_path_factory, content, hits):
    damaged = bytearray(content)
    for position, value in hits:
        damaged[position % len(damaged)] = value
    path = tmp_path_factory.mktemp("damage") / "x.jpg"
    path.write_bytes(damaged)
    with contextlib.suppress(UnreadableImageError):
        assert decode(str(path), 16, most_pixels=1 << 20).mode == "RGB"


def test_without_pillow_the_pip_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    spec = importlib.util.spec_from_file_location("decode_without_pillow", decode_module.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingDependencyError, match="pip install"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
