"""Pictures that the page draws: whatever the API classifies, and nothing that it refuses."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from frontend.api_client import ApiClient, Photo
from frontend.components import pictures
from frontend.components.heat_map import overlay
from frontend.components.pictures import DISPLAY_PX, THUMBNAIL_PX, make_picture
from tests.support.photos import STORED, encode
from tests.support.photos import make_picture as draw

LIMITS = {"max_image_bytes": 20 * 2**20, "max_pixels": 1_000_000}
PICTURE = draw(120, 80)


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    pictures._decode.clear()


def decoded(data: bytes, side_px: int = DISPLAY_PX) -> np.ndarray:
    """Return the pixels that the page shows of a file."""
    picture = make_picture(Photo("x", data), LIMITS, side_px)
    assert picture.reason is None
    image = picture.open()
    assert image is not None
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def heif(image: Image.Image, **options: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, **options)
    return buffer.getvalue()


def gray16() -> Image.Image:
    return Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.uint16) * 257)


def with_alpha(mode: str = "RGBA") -> Image.Image:
    opaque = PICTURE.convert(mode)
    opaque.putalpha(255)
    return opaque


FILES = {
    "JPEG": lambda: encode(PICTURE),
    "progressive JPEG": lambda: encode(PICTURE, progressive=True),
    "CMYK JPEG": lambda: encode(PICTURE.convert("CMYK")),
    "PNG": lambda: encode(PICTURE, "PNG"),
    "RGBA PNG": lambda: encode(with_alpha(), "PNG"),
    "palette PNG": lambda: encode(PICTURE.quantize(256), "PNG"),
    "GIF": lambda: encode(PICTURE.quantize(256), "GIF"),
    "animated GIF": lambda: encode(
        PICTURE.quantize(256), "GIF", save_all=True, append_images=[Image.new("P", PICTURE.size)]
    ),
    "BMP": lambda: encode(PICTURE, "BMP"),
    "TIFF": lambda: encode(PICTURE, "TIFF", compression="tiff_lzw"),
    "CMYK TIFF": lambda: encode(PICTURE.convert("CMYK"), "TIFF"),
    "WebP": lambda: encode(PICTURE, "WEBP", quality=95),
    "animated WebP": lambda: encode(
        PICTURE, "WEBP", quality=95, save_all=True, append_images=[Image.new("RGB", PICTURE.size)]
    ),
    "AVIF": lambda: encode(PICTURE, "AVIF", quality=95),
    "HEIC": lambda: heif(PICTURE),
    "gray PNG": lambda: encode(PICTURE.convert("L"), "PNG"),
    "16-bit gray PNG": lambda: encode(gray16(), "PNG"),
    "16-bit gray TIFF": lambda: encode(gray16(), "TIFF"),
    "float TIFF": lambda: encode(Image.fromarray(np.asarray(PICTURE.convert("L"), np.float32) / 255), "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_and_mode_is_shown_as_it_is(name: str) -> None:
    """The page shows the picture in the file: 16-bit gray was white, and AVIF, HEIC and float had no picture."""
    gray = "gray" in name or "float" in name
    expected = np.asarray(PICTURE.convert("L").convert("RGB") if gray else PICTURE).astype(int)
    shown = decoded(FILES[name]())
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_upright(kind: str, orientation: int) -> None:
    """The orientation in the file is applied once."""
    turn = STORED[orientation]
    stored = PICTURE if turn is None else PICTURE.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = decoded(encode(stored, kind, exif=exif))
    assert shown.shape[:2] == (80, 120)
    assert np.abs(shown - np.asarray(PICTURE).astype(int)).mean() < 25


def test_transparent_pixels_are_white() -> None:
    clear = with_alpha()
    clear.putalpha(0)
    for data in (encode(clear, "PNG"), encode(clear, "WEBP", lossless=True), encode(clear.convert("LA"), "PNG")):
        assert decoded(data).min() >= 250


def test_pictures_are_small() -> None:
    """A large photo is scaled down, a small one keeps its size, and a thin one keeps a pixel."""
    large = encode(draw(1200, 800))
    assert decoded(large).shape == (427, 640, 3)
    assert decoded(large, THUMBNAIL_PX).shape == (171, 256, 3)
    assert decoded(encode(draw(16, 8), "PNG")).shape == (8, 16, 3)
    assert decoded(encode(Image.new("RGB", (20_000, 1)), "PNG")).shape[0] == 1


def test_a_jpeg_without_its_end_is_scaled_down_too() -> None:
    assert decoded(encode(draw(900, 600))[:-2], THUMBNAIL_PX).shape == (171, 256, 3)


def test_the_heat_map_of_16_bit_gray_is_not_white() -> None:
    picture = make_picture(Photo("x", encode(gray16(), "PNG")), LIMITS).open()
    assert picture is not None
    assert np.asarray(overlay(picture, [[0.0, 1.0], [0.0, 0.0]], 1.0, 0.5)).mean() < 200


def png_header(width: int, height: int) -> bytes:
    """Return the first chunk of a PNG that declares a huge image."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


REFUSED = {
    "text": b"text",
    "empty": b"",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PDF": b"%PDF-1.7",
    "ICO": encode(PICTURE, "ICO"),
    "PPM": encode(PICTURE, "PPM"),
    "TGA": encode(PICTURE, "TGA"),
    "JPEG 2000": encode(PICTURE, "JPEG2000"),
    "cut JPEG": encode(PICTURE)[:900],
    "pixel bomb": png_header(100_000, 100_000),
    "too many pixels": encode(Image.new("L", (1001, 1000)), "PNG"),
    "too many bytes": b"\xff\xd8\xff" + bytes(20 * 2**20),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_api_refuses_has_no_picture(name: str, client: ApiClient, service: Any) -> None:
    """The page gives the API's own sentence as the reason; Pillow alone would show several of these."""
    service.configure(limits=service.config.limits.model_copy(update=LIMITS))
    photo = Photo("x", REFUSED[name])
    picture = make_picture(photo, LIMITS)
    assert picture.jpeg is None
    assert picture.reason == client.classify(photo)["error"]["detail"]


def test_a_photo_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and sessions share a picture; refusals are remembered too; lack of memory is not."""
    calls = []
    decode = pictures.make_thumbnail

    def count(encoded: bytes, *arguments: int) -> Image.Image:
        calls.append(encoded)
        if len(calls) == 1:
            raise MemoryError
        return decode(encoded, *arguments)

    monkeypatch.setattr(pictures, "make_thumbnail", count)
    good, bad = encode(PICTURE), b"text"
    assert "too little memory" in str(make_picture(Photo("a", good), LIMITS).reason)
    for name in ("a", "b"):
        assert make_picture(Photo(name, good), LIMITS).jpeg
        assert make_picture(Photo(name, bad), LIMITS).reason
    assert calls == [good, good, bad]
