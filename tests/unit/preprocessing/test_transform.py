"""Stage 2: what the model sees is what torchvision would show it, whatever the file."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as tv
from torchvision.transforms.functional import InterpolationMode

from serve_app.errors import (
    ImageTooLargeError,
    InvalidImageError,
    ServiceError,
    UnsupportedImageError,
)
from serve_app.model_card import ImageTransform
from serve_app.preprocessing.transform import image_stats, preprocess
from tests.support.photos import STORED, encode, make_picture
from tests.support.weights import MEAN, STD

IMAGENET = ImageTransform(resize_px=256, crop_px=224, mean=MEAN, std=STD)
SQUARE = ImageTransform(resize_px=96, crop_px=96, mean=MEAN, std=STD)
LIMIT = 50_000_000


def torchvision_crop(picture: Image.Image, transform: ImageTransform) -> np.ndarray:
    """What torchvision's ImageClassification preset keeps, before it scales to float."""
    resized = tv.resize(picture, [transform.resize_px], InterpolationMode.BILINEAR, antialias=True)
    return np.asarray(tv.center_crop(resized, [transform.crop_px]))


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("transform", [IMAGENET, SQUARE], ids=["imagenet", "square"])
@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (333, 257), (224, 224), (1201, 801), (3024, 1999), (60, 40), (2000, 90), (1, 1)]
)
def test_equals_torchvision(size: tuple[int, int], transform: ImageTransform) -> None:
    """Within 1/255 on average, for large, small, odd, flat and tiny pictures."""
    picture = make_picture(*size)
    ours = preprocess(encode(picture, "PNG"), transform, LIMIT)
    assert ours.pixels.dtype == np.uint8
    assert ours.pixels.shape == (transform.crop_px, transform.crop_px, 3)
    assert mean_difference(ours.pixels, torchvision_crop(picture, transform)) < 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("size", [(403, 301), (301, 402), (640, 480)])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_is_honoured(orientation: int, size: tuple[int, int], kind: str) -> None:
    """All eight EXIF orientations of one picture give the same pixels; Pillow itself turns a TIFF."""
    upright = make_picture(*size)
    how = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = upright.transpose(how) if how is not None else upright
    result = preprocess(encode(picture, kind, exif=exif), IMAGENET, LIMIT)
    assert (result.info.orientation, result.info.width, result.info.height) == (orientation, *picture.size)
    # torchvision rounds the crop's corner of odd sizes; turned, it may round the other way.
    assert mean_difference(result.pixels, torchvision_crop(upright, IMAGENET)) < 0.5


def test_nonsense_orientation_is_ignored() -> None:
    """A tag of 77 must not cost the answer."""
    exif = Image.Exif()
    exif[0x0112] = 77
    assert preprocess(encode(make_picture(), exif=exif), SQUARE, LIMIT).info.orientation == 1


@pytest.mark.parametrize(
    ("kind", "name"),
    [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tiff")],
)
def test_formats_are_known_by_content(kind: str, name: str) -> None:
    """Each accepted format decodes to about the same picture."""
    result = preprocess(encode(make_picture(), kind), SQUARE, LIMIT)
    assert (result.info.format, result.info.width, result.info.height) == (name, 320, 240)
    assert mean_difference(result.pixels, torchvision_crop(make_picture(), SQUARE)) < 6


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    gif = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert preprocess(gif, SQUARE, LIMIT).pixels[48, 48].tolist() == [255, 0, 0]


def solid(mode: str, value: object, kind: str = "PNG", **options: object) -> bytes:
    return encode(Image.new(mode, (64, 64), value), kind, **options)  # type: ignore[arg-type] # any mode's value


def palette_with_transparency() -> bytes:
    picture = Image.new("P", (64, 64), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    return encode(picture, "PNG", transparency=1)


def float_tiff(value: float) -> bytes:
    return encode(Image.fromarray(np.full((64, 64), value, np.float32)), "TIFF")


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (solid("RGBA", (255, 0, 0, 0)), (255, 255, 255)),
        (solid("RGBA", (255, 0, 0, 255)), (255, 0, 0)),
        (solid("RGBA", (0, 0, 0, 128)), (127, 127, 127)),
        (solid("LA", (0, 0)), (255, 255, 255)),
        (solid("LA", (100, 255)), (100, 100, 100)),
        (palette_with_transparency(), (255, 255, 255)),
        (solid("L", 77), (77, 77, 77)),
        (solid("1", 1), (255, 255, 255)),
        (solid("I;16", 32896), (128, 128, 128)),
        (solid("I", 200, "TIFF"), (200, 200, 200)),
        (solid("CMYK", (0, 255, 255, 0), "JPEG"), (254, 0, 0)),
        (solid("RGB", (1, 2, 3), "PNG", transparency=(1, 2, 3)), (255, 255, 255)),
        (float_tiff(0.5), (128, 128, 128)),
        (float_tiff(float("nan")), (0, 0, 0)),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
def test_every_mode_becomes_rgb(encoded: bytes, expected: tuple[int, int, int]) -> None:
    """Transparency over white, deep grayscale to 8 bit, CMYK and palettes to RGB."""
    center = preprocess(encoded, SQUARE, LIMIT).pixels[48, 48].astype(int)
    assert np.abs(center - expected).max() <= 2


def test_pixel_limit_is_checked_before_decoding() -> None:
    """The header is enough to refuse the file; this one has no image data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side, sentence in (
        (10_000, "10000 x 10000 = 100,000,000 pixels; the limit is 50,000,000"),
        (60_000, "the limit"),
    ):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        with pytest.raises(ImageTooLargeError, match=sentence):
            preprocess(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""), SQUARE, LIMIT)


def test_what_is_no_image_is_unsupported() -> None:
    with pytest.raises(UnsupportedImageError, match="starting with b'hello"):
        preprocess(b"hello, this is text", SQUARE, LIMIT)


def test_other_image_formats_are_unsupported() -> None:
    """Pillow could read it, but nobody asked for ICO's attack surface."""
    with pytest.raises(UnsupportedImageError):
        preprocess(encode(make_picture(64, 64), "ICO"), SQUARE, LIMIT)


def test_empty_is_invalid() -> None:
    with pytest.raises(InvalidImageError, match="0 bytes"):
        preprocess(b"", SQUARE, LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_invalid(kind: str) -> None:
    """Half a picture is an error, never a half-gray answer."""
    encoded = encode(make_picture(), kind)
    for keep in (len(encoded) // 2, 20):
        with pytest.raises(InvalidImageError):
            preprocess(encoded[:keep], SQUARE, LIMIT)


SAMPLES = {kind: encode(make_picture(40, 30), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_mutations_give_pixels_or_our_error(kind: str, data: st.DataObject) -> None:
    """Whatever bytes are changed in a valid file, nothing but ServiceError comes out."""
    encoded = bytearray(SAMPLES[kind])
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(encoded) - 1), st.integers(0, 255)), max_size=12)
    ):
        encoded[place] = value
    shape, status = None, None
    try:
        shape = preprocess(bytes(encoded), SQUARE, LIMIT).pixels.shape
    except ServiceError as error:
        status = error.status
    assert shape == (SQUARE.crop_px, SQUARE.crop_px, 3) if status is None else status in (413, 415, 422)


def test_broken_exif_does_not_cost_the_picture() -> None:
    buffer = io.BytesIO()
    make_picture().save(buffer, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert preprocess(buffer.getvalue(), SQUARE, LIMIT).info.orientation == 1


@pytest.mark.parametrize("side", [1, 2, 224, 1000])
def test_stats_are_exact(side: int) -> None:
    """Brightness, contrast and sharpness are those of floating-point numbers, also for the darkest and brightest."""
    random = np.random.default_rng(side)
    noise = random.integers(0, 256, (side, side, 3), np.uint8)
    for pixels in (noise, np.zeros_like(noise), np.full_like(noise, 255)):
        green = pixels[:, :, 1].astype(float)
        sharpness = float(np.abs(np.diff(green, axis=1)).mean()) if side > 1 else 0.0
        assert image_stats(pixels) == pytest.approx((green.mean(), green.std(), sharpness), rel=1e-12)
