"""BMP: color masks that Pillow does not know, and alpha channels that are declared and left empty."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from serve_app.errors import InvalidImageError, UnsupportedImageError
from serve_app.model_card import ImageTransform
from serve_app.preprocessing.transform import preprocess
from tests.fuzz import bombs
from tests.support.weights import MEAN, STD

SQUARE = ImageTransform(resize_px=96, crop_px=96, mean=MEAN, std=STD)
BGRA, RGBA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000), (0xFF, 0xFF00, 0xFF0000, 0xFF000000)


def center(encoded: bytes) -> list[int]:
    return [int(value) for value in preprocess(encoded, SQUARE, 10**6).pixels[48, 48]]


@pytest.mark.parametrize(
    ("bits", "masks", "pixel", "color"),
    [
        (32, BGRA, 0x00C86432, (200, 100, 50)),
        (32, BGRA, 0xFFC86432, (200, 100, 50)),
        (32, RGBA, 0x003264C8, (200, 100, 50)),
        (32, (0, 0, 0, 0), 0x00C86432, (200, 100, 50)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF, 0), 0x3FF00000, (255, 0, 0)),
        (32, (0x3FF, 0xFFC00, 0x3FF00000, 0xC0000000), 0x000003FF, (255, 0, 0)),
        (16, (0xF800, 0x7E0, 0x1F, 0), 0xF800, (255, 0, 0)),
        (16, (0x7C00, 0x3E0, 0x1F, 0x8000), 0x7C00, (255, 0, 0)),
        (16, (0x7C00, 0x3E0, 0x1F, 0x8000), 0xFC00, (255, 0, 0)),
        (16, (0xF00, 0xF0, 0xF, 0xF000), 0x0F00, (255, 0, 0)),
        (16, (0xF00, 0xF0, 0xF, 0xF000), 0x800F, (119, 119, 255)),
    ],
)
def test_masks(bits: int, masks: tuple[int, int, int, int], pixel: int, color: tuple[int, int, int]) -> None:
    """Alpha that is 0 everywhere counts as none, as in browsers; other alpha is composed over white."""
    encoded = bombs.bmp_of_masks(40, 30, bits, masks, pixel)
    assert np.abs(np.subtract(center(encoded), color)).max() <= 1


def test_alpha_counts_where_one_pixel_has_it() -> None:
    """Transparent pixels are white as soon as another pixel is opaque."""
    encoded = bytearray(bombs.bmp_of_masks(40, 30, 32, BGRA, 0x00C86432))
    encoded[-1] = 255
    assert center(bytes(encoded)) == [255, 255, 255]


@pytest.mark.parametrize(
    ("field", "size", "value", "words"),
    [
        (28, 2, 2, "2 bits per pixel"),
        (28, 2, 64, "64 bits per pixel"),
        (30, 4, 4, "JPEG inside"),
        (30, 4, 5, "PNG inside"),
        (30, 4, 1, "run-length"),
        (14, 4, 16, "header of 16 bytes"),
    ],
)
def test_other_layouts_are_named(field: int, size: int, value: int, words: str) -> None:
    encoded = bytearray(bombs.bmp_of_masks(40, 30, 32, BGRA))
    encoded[field : field + size] = value.to_bytes(size, "little")
    with pytest.raises(UnsupportedImageError, match=words):
        center(bytes(encoded))


def test_broken_headers_are_invalid() -> None:
    encoded = bombs.bmp_of_masks(40, 30, 32, BGRA)
    for broken in (encoded[:20], encoded[:60], encoded[:-1], encoded[:18] + struct.pack("<i", -40) + encoded[22:]):
        with pytest.raises(InvalidImageError):
            center(broken)
