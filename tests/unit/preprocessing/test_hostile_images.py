"""Files made to be slow or fat to decode are refused, or cost no more than preprocess promises."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serve_app.preprocessing.color import to_rgb
from serve_app.preprocessing.decode import MAX_READS, MAX_SCANS
from serve_app.preprocessing.transform import preprocess
from tests.fuzz import bombs
from tests.fuzz.mutate import mutate, valid_files
from tests.fuzz.watch import IMAGENET, decode, in_a_child
from tests.support.photos import encode, make_picture
from tests.support.tiff import make_tiff

LIMIT = 50_000_000
SMALL = 4_000_000  # pixels that a test can afford


@pytest.mark.parametrize(
    ("make", "outcome"),
    [
        (lambda: bombs.jpeg_with(bombs.jpeg_segment(0xE1, b"Exif\0\0" + bytes(20)) * 20_000), "422 invalid_image"),
        (lambda: bombs.jpeg_with(bombs.jpeg_segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 80), "jpeg ok"),
        (lambda: bombs.jpeg_with(bombs.jpeg_segment(0xFE, b"") * 1_000_000), "422 invalid_image"),
        (lambda: bombs.jpeg_with(b"\xff" * 1_000_000), "jpeg ok"),
        (lambda: bombs.jpeg_with(b"\xff" * 1_000_000 + b"\0"), "jpeg ok"),
        (lambda: bombs.jpeg_with(b"")[:-2] + b"\xff" * 1_000_000 + b"\0", "jpeg ok"),
        (lambda: bombs.jpeg_of_empty_scans(3000, 400), "422 invalid_image"),
        (lambda: bombs.jpeg_of_scans(3000, 400), "422 invalid_image"),
        (lambda: bombs.png_of_tiny_chunks(1_000_000), "422 invalid_image"),
        (lambda: bombs.png_in_tiny_pieces(1_000_000), "422 invalid_image"),
        (lambda: bombs.png_of_text(200), "png ok"),
        (lambda: bombs.gif(8, 8, bombs.gif_blocks(0xFE, 1_000_000)), "422 invalid_image"),
        (lambda: bombs.gif(8, 8, bombs.gif_blocks(0xFF, 1_000_000)), "422 invalid_image"),
        (lambda: bombs.gif(8, 8, frame=(9000, 9000)), "413 image_too_large"),
        (lambda: bombs.gif(65535, 65535, frame=(8, 8)), "413 image_too_large"),
        (lambda: bombs.bmp_rle(7000, b"\x01\x02\x00\x00" * 7000), "415 unsupported_image"),
        (lambda: bombs.bmp_rle(7000, b"\x01\x02" * 200_000, 4), "415 unsupported_image"),
        (lambda: bombs.tiff_of_strips(1_000_000), "422 invalid_image"),
        (lambda: bombs.tiff_of_one_tile(16_000), "413 image_too_large"),
        (lambda: bombs.tiff_of_tags(30_000), "tiff ok"),
    ],
    ids=[
        *("jpeg: Exif in tiny segments", "jpeg: Exif in large segments", "jpeg: tiny segments", "jpeg: fill bytes"),
        *("jpeg: fill bytes before no marker", "jpeg: fill bytes at its end"),
        *("jpeg: empty scans", "jpeg: progressive scans", "png: tiny chunks", "png: tiny pieces of pixels"),
        *("png: text that inflates", "gif: a comment of tiny blocks", "gif: an extension of tiny blocks"),
        *("gif: frame larger than its screen", "gif: screen larger than its frame", "bmp: run-length rows"),
        *("bmp: run-length pairs", "tiff: strips", "tiff: a tile larger than the picture", "tiff: tags"),
    ],
)
def test_bombs_cost_little(make: Callable[[], bytes], outcome: str) -> None:
    """Each would take seconds to hours, or gigabytes; each is answered within 3 s and 100 MiB."""
    cost = in_a_child(make, 20)
    assert (cost.outcome, cost.seconds < 3, cost.mib < 100) == (outcome, True, True), cost


FATTEST = {
    "jpeg, progressive": lambda: bombs.flat("RGB", SMALL, "JPEG", progressive=True, subsampling=0),
    "jpeg, progressive CMYK": lambda: bombs.flat("CMYK", SMALL, "JPEG", progressive=True),
    "png, 16-bit RGBA": lambda: bombs.png(2000, 16, 6, 16000),
    "png, 16-bit gray": lambda: bombs.png(2000, 16, 0, 4000),
    "gif": lambda: bombs.gif(2000, 2000),
    "bmp": lambda: bombs.flat("RGBA", SMALL, "BMP"),
    "webp, lossless": lambda: bombs.flat("RGBA", SMALL, "WEBP", lossless=True, method=0, quality=0),
    "webp, lossy": lambda: bombs.flat("RGB", SMALL, "WEBP", method=0),
    "tiff, 32-bit": lambda: bombs.flat("I", SMALL, "TIFF", compression="tiff_deflate"),
    "tiff, float": lambda: bombs.flat("F", SMALL, "TIFF", compression="tiff_deflate"),
    "tiff, CMYK": lambda: bombs.flat("CMYK", SMALL, "TIFF", compression="tiff_deflate"),
    "tiff, float of 64 bits": lambda: make_tiff(np.zeros((2000, 2000)), deflate=True),
    "tiff, gray + alpha of 16 bits": lambda: make_tiff(np.zeros((2000, 2000, 2), np.uint16), deflate=True, extra=2),
    "png, 16-bit RGB with a transparent color": lambda: bombs.png(
        2000, 16, 2, 12000, bombs.png_chunk(b"tRNS", bytes(6))
    ),
    "bmp, masks": lambda: bombs.bmp_of_masks(2000, 2000, 32, (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000)),
    "jpeg, without an end": lambda: bombs.flat("RGB", SMALL, "JPEG", subsampling=0)[:-2],
    "avif": lambda: bombs.flat("RGBA", SMALL, "AVIF", speed=10, subsampling="4:4:4"),
    "heic": lambda: bombs.flat("RGBA", SMALL, "HEIF", chroma=444),
    "tiff, RGBA, turned": lambda: bombs.turned_tiff(SMALL),
}


@pytest.mark.parametrize("make", FATTEST.values(), ids=FATTEST)
def test_memory_is_bounded_by_the_pixels(make: Callable[[], bytes]) -> None:
    """Whatever the format and mode: at most 24 bytes for each pixel, and 150 MiB."""
    cost = in_a_child(make, 60)
    assert cost.outcome.endswith("ok"), cost
    assert cost.mib < 24 * SMALL / 2**20 + 150, cost


def test_a_large_photo_may_have_as_many_scans_as_encoders_write() -> None:
    """A progressive photo has ten; one of max_pixels passes with that, and with what is allowed."""
    for scans in (1, MAX_SCANS - 10):
        photo = bombs.jpeg_of_scans(2000, scans)
        assert decode(photo, max_pixels=4_000_000).outcome == "jpeg ok"
    assert decode(bombs.jpeg_of_scans(2000, MAX_SCANS), max_pixels=4_000_000).outcome == "422 invalid_image"


def test_scans_are_counted_where_the_decoder_finds_them() -> None:
    """A comment between scans that looks like the file's end hides none; one that looks like scans adds none."""
    photo = bombs.jpeg_of_scans(2000, 30)
    last = photo.rindex(b"\xff\xda")
    hiding = bombs.jpeg_segment(0xFE, b"\xff\xd9")
    at = photo.index(b"\xff\xda")
    assert decode(photo[:at] + hiding + photo[at:], 4_000_000).outcome == "422 invalid_image"
    assert last > at
    plain = encode(make_picture(2000, 2000), quality=50)
    noisy = bombs.jpeg_segment(0xFE, b"\xff\xda\0\0" * 1000)
    assert decode(plain[:2] + noisy + plain[2:], 4_000_000).outcome == "jpeg ok"


def test_what_a_large_honest_file_needs_is_far_below_the_limits() -> None:
    """A 20 MB PNG in 8 kB pieces, as libpng writes them, is read with a tenth of the reads allowed."""
    noise = np.random.default_rng(0).integers(0, 256, (2500, 2600, 3), np.uint8)
    png = encode(Image.fromarray(noise), "PNG", compress_level=0)
    assert len(png) > 19e6
    pieces = bytearray(png[:8])
    at = 8
    while at < len(png):
        size, kind = int.from_bytes(png[at : at + 4]), png[at + 4 : at + 8]
        body = png[at + 8 : at + 8 + size]
        step = 8192 if kind == b"IDAT" else max(size, 1)
        for start in range(0, max(size, 1), step):
            pieces += bombs.png_chunk(kind, body[start : start + step])
        at += 12 + size
    assert pieces.count(b"IDAT") * 4 * 8 < MAX_READS
    assert decode(bytes(pieces)).outcome == "png ok"


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "P", "1", "I", "I;16", "F"])
def test_converting_in_squares_changes_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture converted in many small squares equals the same converted in one."""
    gray = mode in ("I", "I;16", "F")
    picture = (make_picture(300, 200).convert("L") if gray else make_picture(300, 200)).convert(mode)
    at_once = np.asarray(to_rgb(picture))
    monkeypatch.setattr("serve_app.preprocessing.color.TILE_PX", 64)
    assert np.array_equal(np.asarray(to_rgb(picture)), at_once)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_hostile_children_give_pixels_or_our_error(seed: int) -> None:
    """Mutations of every format and mode: nothing but pixels or a 4xx comes out, in bounded time."""
    cost = decode(mutate(VALID, random.Random(seed)))
    assert cost.clean, cost
    assert cost.seconds < 5, cost


VALID = valid_files()


@pytest.mark.parametrize("tail", [b"PK\3\4 a zip", b"<script>alert(1)</script>", b"%PDF-1.7", bytes(1000)])
def test_polyglots_are_what_they_begin_with(tail: bytes) -> None:
    """An image with another file behind it is that image; the other file with an image behind it is none."""
    photo = encode(make_picture())
    plain, followed = (preprocess(each, IMAGENET, LIMIT).pixels for each in (photo, photo + tail))
    assert np.array_equal(plain, followed)
    assert decode(tail + photo).outcome == "415 unsupported_image"
