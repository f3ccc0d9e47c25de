"""Samples of more than 8 bits: the file's tags tell what is black and white, and no single pixel does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.errors import InvalidImageError, ServiceError, UnsupportedImageError
from serve_app.model_card import ImageTransform
from serve_app.preprocessing.transform import preprocess
from tests.support.photos import encode, make_picture
from tests.support.tiff import make_tiff
from tests.support.weights import MEAN, STD

SQUARE = ImageTransform(resize_px=96, crop_px=96, mean=MEAN, std=STD)
LIMIT = 10_000_000
RGB = np.asarray(make_picture(100, 76))
GRAY = np.asarray(make_picture(100, 76).convert("L"))
UNIT = GRAY / 255  # 0-1


def pixels(encoded: bytes) -> np.ndarray:
    return preprocess(encoded, SQUARE, LIMIT).pixels.astype(float)


PLAIN, PLAIN_GRAY = (pixels(encode(Image.fromarray(each), "PNG")) for each in (RGB, GRAY))


def with_pixel(values: np.ndarray, value: float) -> np.ndarray:
    """Return a copy in which one pixel has another value."""
    changed = values.copy()
    changed[3, 5] = value
    return changed


def u16(values: np.ndarray, white: int = 65535) -> np.ndarray:
    return np.round(values * white).astype(np.uint16)


F32 = UNIT.astype(np.float32)
INF, NAN = float("inf"), float("nan")
TIFFS: dict[str, Callable[[], bytes]] = {
    "u16": lambda: make_tiff(u16(UNIT)),
    "u16, white is zero": lambda: make_tiff(u16(1 - UNIT), color=0),
    "u16, one white pixel too many": lambda: make_tiff(with_pixel(u16(UNIT, 4095), 65535)),
    "10 bits in 16": lambda: make_tiff(u16(UNIT, 1023)),
    "12 bits in 16": lambda: make_tiff(u16(UNIT, 4095)),
    "12 bits in 16, MaxSampleValue": lambda: make_tiff(u16(UNIT, 4095), tags=((281, 3, (4095,)),)),
    "12 bits in 16, white is zero": lambda: make_tiff(u16(1 - UNIT, 4095), color=0, tags=((281, 3, (4095,)),)),
    "14 bits in 16, MaxSampleValue": lambda: make_tiff(u16(UNIT, 16383), tags=((341, 3, (16383,)),)),
    "8 bits in 16": lambda: make_tiff(GRAY.astype(np.uint16)),
    "i16, positive half": lambda: make_tiff(np.round(UNIT * 32767).astype(np.int16)),
    "i16, full range": lambda: make_tiff((np.round(UNIT * 65535) - 32768).astype(np.int16)),
    "i16, white is zero": lambda: make_tiff((32767 - np.round(UNIT * 65535)).astype(np.int16), color=0),
    "i8": lambda: make_tiff((GRAY.astype(int) - 128).astype(np.int8)),
    "u32": lambda: make_tiff(np.round(UNIT * (2**32 - 1)).astype(np.uint32)),
    "u32, white is zero": lambda: make_tiff(np.round((1 - UNIT) * (2**32 - 1)).astype(np.uint32), color=0),
    "u32 of 0-255": lambda: make_tiff(GRAY.astype(np.uint32)),
    "u32 of 0-65535": lambda: make_tiff(u16(UNIT).astype(np.uint32)),
    "u32 of 0-255, one large pixel": lambda: make_tiff(with_pixel(GRAY.astype(np.uint32), 4e9)),
    "i32 of 0-65535": lambda: make_tiff(u16(UNIT).astype(np.int32)),
    "i32": lambda: make_tiff((np.round(UNIT * (2**32 - 1)) - 2**31).astype(np.int32)),
    "u64": lambda: make_tiff(GRAY.astype(np.uint64) * (2**64 // 255)),
    "f16": lambda: make_tiff(UNIT.astype(np.float16)),
    "f32": lambda: make_tiff(F32),
    "f32, overshoot": lambda: make_tiff(with_pixel(F32, 1.05)),
    "f32, far overshoot": lambda: make_tiff(with_pixel(F32, 9e9)),
    "f32, infinity": lambda: make_tiff(with_pixel(F32, INF)),
    "f32, negative infinity": lambda: make_tiff(with_pixel(F32, -INF)),
    "f32, NaN": lambda: make_tiff(with_pixel(F32, NAN)),
    "f32, signaling NaN": lambda: make_tiff(with_pixel(F32.view(np.uint32), 0x7F800001).view(np.float32)),
    "f32 of 0-255": lambda: make_tiff(GRAY.astype(np.float32)),
    "f32 of 0-255, sharpened": lambda: make_tiff(with_pixel(GRAY.astype(np.float32), 275)),
    "f32 of 0-4095": lambda: make_tiff(4095 * F32),
    "f32 of 0-65535": lambda: make_tiff(65535 * F32),
    "f32 of -1 to 1": lambda: make_tiff(2 * F32 - 1),
    "f32, SMinSampleValue and SMaxSampleValue": lambda: make_tiff(
        300 * F32 - 100, tags=((340, 11, (-100.0,)), (341, 11, (200.0,)))
    ),
    "f32, SMaxSampleValue is infinite": lambda: make_tiff(F32, tags=((341, 11, (INF,)),)),
    "f32, white is zero": lambda: make_tiff(1 - F32, color=0),
    "f64": lambda: make_tiff(UNIT),
    "f64 of 0-255": lambda: make_tiff(GRAY.astype(np.float64)),
    "gray + unspecified, 16 bits": lambda: make_tiff(np.stack([u16(UNIT), u16(1 - UNIT)], -1), extra=0),
    "gray + alpha, 16 bits": lambda: make_tiff(np.stack([u16(UNIT), u16(UNIT * 0 + 1)], -1), extra=2),
    "no PhotometricInterpretation": lambda: make_tiff(u16(UNIT), remove=(262,)),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {},
    "big-endian": {"order": ">"},
    "deflate": {"deflate": True},
    "big-endian, deflate": {"order": ">", "deflate": True},
    "BigTIFF": {"big": True},
    "tiles": {"tile": 32},
    "big-endian tiles, deflate": {"order": ">", "tile": 32, "deflate": True},
}


@pytest.mark.parametrize("make", TIFFS.values(), ids=TIFFS)
def test_gray_of_any_depth_is_the_same_picture(make: Callable[[], bytes]) -> None:
    """Each looks like the 8-bit picture; one pixel may differ, and 8 bits round."""
    assert np.abs(pixels(make()) - PLAIN_GRAY).mean() < 1.5


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4", "f2", "f4", "u8", "f8"])
def test_gray_in_any_layout(dtype: str, layout: dict[str, Any]) -> None:
    """Byte order, tiles and compression don't change the picture; Pillow swapped the bytes of some."""
    white = {"u": 2.0 ** (8 * int(dtype[1])), "i": 2.0 ** (8 * int(dtype[1]) - 1), "f": 1.0}[dtype[0]]
    values = (UNIT * white * 0.999).astype(dtype) if dtype != "u1" else GRAY
    assert np.abs(pixels(make_tiff(values, **layout)) - PLAIN_GRAY).mean() < 1.5


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("values", "predictor"), [(u16(UNIT), 2), (np.round(UNIT * 2**31).astype(np.uint32), 2), (F32, 3)]
)
def test_predictors(values: np.ndarray, predictor: int, order: str) -> None:
    encoded = make_tiff(values, order=order, deflate=True, predictor=predictor)
    expected = PLAIN_GRAY / 2 if values.dtype == np.uint32 else PLAIN_GRAY
    assert np.abs(pixels(encoded) - expected).mean() < 1.5


COLORS: dict[str, Callable[..., bytes]] = {
    "RGB, 16 bits": lambda **layout: make_tiff(u16(RGB / 255), 2, **layout),
    "RGBX, 16 bits": lambda **layout: make_tiff(u16(np.dstack([RGB, GRAY]) / 255), 2, extra=0, **layout),
    "RGBA, 16 bits": lambda **layout: make_tiff(u16(np.dstack([RGB, GRAY * 0 + 255]) / 255), 2, extra=2, **layout),
    "RGB, float": lambda **layout: make_tiff((RGB / 255).astype(np.float32), 2, **layout),
    "RGB, u32": lambda **layout: make_tiff((RGB.astype(np.uint32) * (2**32 // 255)), 2, **layout),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("make", COLORS.values(), ids=COLORS)
def test_color_of_any_depth(make: Callable[..., bytes], layout: dict[str, Any]) -> None:
    assert np.abs(pixels(make(**layout)) - PLAIN).mean() < 1.5


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("depth", [8, 16])
def test_planes_are_put_together(depth: int, layout: dict[str, Any]) -> None:
    """Pillow took the two bytes of a sample in separate planes for two pixels."""
    values = u16(RGB / 255) if depth == 16 else RGB
    assert np.abs(pixels(make_tiff(values, 2, planar=True, **layout)) - PLAIN).mean() < 1.5


def test_alpha_of_16_bits_is_composed_over_white() -> None:
    half = u16(np.dstack([RGB * 0, GRAY * 0 + 128]) / 255)
    assert np.abs(pixels(make_tiff(half, 2, extra=2)) - 127).max() <= 1
    gray = u16(np.dstack([GRAY * 0, GRAY * 0]) / 255)
    assert pixels(make_tiff(gray, extra=2)).min() == 255


def test_a_dark_picture_stays_dark() -> None:
    """An eighth of the brightness in 16 bits is not taken for a picture of fewer bits."""
    assert np.abs(pixels(make_tiff(u16(UNIT / 8))) - PLAIN_GRAY / 8).mean() < 1.5
    assert np.abs(pixels(make_tiff(F32 / 8)) - PLAIN_GRAY / 8).mean() < 1.5


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (make_tiff((RGB / 255).astype(np.float32), 2, planar=True), "float samples of 32 bits"),
        (make_tiff((RGB / 255).astype(np.float32), 2, deflate=True, predictor=3), "float samples of 32 bits"),
        (make_tiff(UNIT, deflate=True, predictor=2), "float samples of 64 bits"),
        (make_tiff(UNIT.astype(np.float32), tags=((339, 3, (6,)),)), "complex samples"),
        (make_tiff(u16(UNIT), tags=((258, 3, (14,)),)), "samples of 14 bits"),
        (make_tiff(u16(UNIT), 32803), "camera raw"),
        (make_tiff(GRAY, tags=((259, 3, (34925,)),)), "compression 34925"),
    ],
    ids=["float planes", "float RGB, predictor", "f64, predictor", "complex", "14 bits", "camera raw", "LZMA"],
)
def test_other_layouts_are_named(encoded: bytes, words: str) -> None:
    with pytest.raises(UnsupportedImageError, match=words):
        pixels(encoded)


def test_a_tag_of_many_values_costs_nothing() -> None:
    """Tags that decoding does not need are not converted; 650 000 rational numbers took 6.7 s."""
    many = tuple(range(100_000))
    for tag, code in ((282, 5), (700, 5), (33432, 5), (34665, 5), (274, 5)):
        assert np.array_equal(pixels(make_tiff(GRAY, tags=((tag, code, many),))), PLAIN_GRAY)
    with pytest.raises(InvalidImageError, match="100000 values of tag 258"):
        pixels(make_tiff(GRAY, tags=((258, 4, many),)))


def test_a_cut_tiff_is_invalid() -> None:
    encoded = make_tiff(u16(UNIT), deflate=True)
    for keep in range(9, len(encoded), 97):
        with pytest.raises(ServiceError) as error:
            pixels(encoded[:keep])
        assert error.value.status == 422
