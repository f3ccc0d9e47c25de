"""JPEG: broken or large segments, a missing end marker, and CMYK."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
from PIL import Image

from serve_app.errors import InvalidImageError
from serve_app.model_card import ImageTransform
from serve_app.preprocessing.transform import preprocess
from tests.fuzz import bombs
from tests.support.photos import encode, make_picture
from tests.support.weights import MEAN, STD

SQUARE = ImageTransform(resize_px=96, crop_px=96, mean=MEAN, std=STD)
PICTURE = make_picture(100, 76)
JPEG = encode(PICTURE)


def pixels(encoded: bytes) -> np.ndarray:
    return preprocess(encoded, SQUARE, 10_000_000).pixels


def segment(marker: int, body: bytes) -> bytes:
    return bombs.jpeg_segment(marker, body)


@pytest.mark.parametrize(
    "piece",
    [
        segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(40)),
        segment(0xE1, b"Exif\0\0"),
        segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 100,
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<broken"),
        segment(0xE2, b"ICC_PROFILE\0\x01"),
        segment(0xE2, b"ICC_PROFILE\0\x01\x02" + bytes(60_000)) * 40,
        segment(0xE2, b"MPF\0garbage"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
        segment(0xE0, b"JFIF\0"),
        segment(0xEE, b"Adobe"),
        segment(0xFE, bytes(65_000)) * 30,
        b"garbage between segments",
        b"\xff" * 1000,
    ],
)
def test_jpeg_segments_cost_nothing(piece: bytes) -> None:
    at = JPEG.index(b"\xff\xdb")
    assert np.array_equal(pixels(JPEG[:at] + piece + JPEG[at:]), pixels(JPEG))


OPTIONS = [
    {},
    {"progressive": True},
    {"optimize": True},
    {"subsampling": 0},
    {"restart_marker_blocks": 3},
    {"progressive": True, "restart_marker_rows": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_only_its_end_is_decoded(mode: str, options: dict[str, int]) -> None:
    encoded = encode(PICTURE.convert(mode), **options)
    for end in (b"", b"\xff"):
        assert np.array_equal(pixels(encoded[:-2] + end), pixels(encoded))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("white", [False, True], ids=["picture", "white"])
def test_a_jpeg_that_is_cut_earlier_is_invalid(options: dict[str, int], white: bool) -> None:
    """Wherever it is cut, also between restart markers and scans.

    Exception: the last scan of a white progressive picture can code nothing, and its Huffman table says so; what is
    decoded without it is the complete picture.
    """
    picture = Image.new("RGB", (100, 76), "white") if white else PICTURE
    encoded = encode(picture, **options)
    random_cuts = random.Random(0).sample(range(700, len(encoded) - 8), 40) if len(encoded) > 800 else []
    markers = [at for at in range(650, len(encoded) - 4) if encoded[at] == 0xFF and encoded[at + 1]][:40]
    for keep in (*random_cuts, *markers, len(encoded) // 2):
        with contextlib.suppress(InvalidImageError):
            assert np.array_equal(pixels(encoded[:keep]), pixels(encoded))
            assert white
            assert keep > encoded.rindex(b"\xff\xda")


def test_a_cmyk_jpeg_is_inverted_only_by_its_adobe_segment() -> None:
    """Pillow writes the segment and inverted values; without the segment the same values mean the negative."""
    cmyk = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    encoded = encode(cmyk)
    at = encoded.index(b"\xff\xee")
    without = encoded[:at] + encoded[at + 2 + int.from_bytes(encoded[at + 2 : at + 4]) :]
    negative = encode(Image.new("CMYK", (64, 64), (255, 0, 0, 255)), "TIFF")
    assert np.abs(pixels(encoded).astype(int) - (255, 0, 0)).max() < 3
    assert np.abs(pixels(without).astype(int) - pixels(negative)).max() < 3
