"""A sound picture is decoded whatever its metadata is like; a picture that is cut or coded otherwise is named."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from serve_app.errors import InvalidImageError, UnsupportedImageError
from serve_app.model_card import ImageTransform
from serve_app.preprocessing.formats import SUFFIXES
from serve_app.preprocessing.orientation import read_orientation
from serve_app.preprocessing.transform import preprocess
from tests.fuzz import bombs
from tests.support.photos import encode, make_picture
from tests.support.weights import MEAN, STD

SQUARE = ImageTransform(resize_px=96, crop_px=96, mean=MEAN, std=STD)
LIMIT = 10_000_000
PICTURE = make_picture(100, 76)
PNG, JPEG = encode(PICTURE, "PNG"), encode(PICTURE)


def pixels(encoded: bytes) -> np.ndarray:
    return preprocess(encoded, SQUARE, LIMIT).pixels


def orientation(encoded: bytes) -> int:
    return preprocess(encoded, SQUARE, LIMIT).info.orientation


def png_with(*chunks: bytes, last: bool = False) -> bytes:
    """Return the PNG with chunks before its pixels, or behind them."""
    at = PNG.index(b"IEND" if last else b"IDAT") - 4
    return PNG[:at] + b"".join(chunks) + PNG[at:]


def damaged(chunk: bytes) -> bytes:
    """Return a chunk with a wrong checksum."""
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


LARGE = bytes(1_500_000)
EXIF_6 = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
XMP_6 = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
CHUNKS = {
    "tEXt": b"Comment\0hello",
    "zTXt": b"Comment\0\0" + zlib.compress(b"hello"),
    "iTXt": b"Comment\0\0\0\0\0hello",
    "iCCP": b"sRGB\0\0" + zlib.compress(bytes(300)),
    "eXIf": EXIF_6,
    "gAMA": struct.pack(">I", 45455),
    "cHRM": bytes(32),
    "sRGB": b"\0",
    "pHYs": struct.pack(">IIB", 1, 1, 1),
    "tIME": bytes(7),
    "bKGD": bytes(6),
    "prVt": b"private",
    "acTL": struct.pack(">II", 2, 0),
}


@pytest.mark.parametrize("last", [False, True], ids=["before the pixels", "behind the pixels"])
@pytest.mark.parametrize("kind", CHUNKS)
def test_png_chunks_with_a_wrong_checksum_are_left_out(kind: str, last: bool) -> None:
    encoded = png_with(damaged(bombs.png_chunk(kind.encode(), CHUNKS[kind])), last=last)
    assert np.array_equal(pixels(encoded), pixels(PNG))
    assert orientation(encoded) == 1


@pytest.mark.parametrize(
    "chunk",
    [
        bombs.png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LARGE)),
        bombs.png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LARGE)),
        bombs.png_chunk(b"tEXt", b"Comment\0" + LARGE),
        bombs.png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(LARGE)),
        bombs.png_chunk(b"iCCP", b"profile\0\1" + LARGE),
        bombs.png_chunk(b"zTXt", b"Comment\0\7" + LARGE),
        *(
            bombs.png_chunk(kind, b"")
            for kind in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"iCCP", b"acTL", b"eXIf", b"tEXt")
        ),
    ],
)
def test_large_or_short_png_chunks_cost_nothing(chunk: bytes) -> None:
    assert np.array_equal(pixels(png_with(chunk)), pixels(PNG))
    assert np.array_equal(pixels(png_with(chunk, last=True)), pixels(PNG))


def test_a_wrong_checksum_of_what_decoding_needs_is_an_error() -> None:
    palette = encode(PICTURE.convert("P"), "PNG")
    for encoded, kind in ((PNG, b"IHDR"), (PNG, b"IDAT"), (palette, b"PLTE")):
        at = encoded.index(kind)
        end = at + 4 + int.from_bytes(encoded[at - 4 : at])
        with pytest.raises(InvalidImageError):
            pixels(encoded[:end] + damaged(encoded[end : end + 4]) + encoded[end + 4 :])


@pytest.mark.parametrize("last", [False, True])
def test_png_orientation_is_found(last: bool) -> None:
    text = b"\nexif\n      %d\n%s" % (len(EXIF_6), EXIF_6.hex().encode())
    for chunk in (
        bombs.png_chunk(b"eXIf", EXIF_6),
        bombs.png_chunk(b"tEXt", b"Raw profile type exif\0" + text),
        bombs.png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
        bombs.png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_6),
    ):
        assert orientation(png_with(chunk, last=last)) == 6


@pytest.mark.parametrize(
    ("mode", "transparency", "options"),
    [("L", 7, {}), ("1", 0, {}), ("P", 3, {}), ("L", 1, {"bits": 2}), ("L", 5, {"bits": 4}), ("RGB", (7, 8, 9), {})],
)
def test_png_transparency(mode: str, transparency: int, options: dict[str, int]) -> None:
    """The transparent color becomes white; for 2 and 4 bits Pillow compared it with the scaled value."""
    picture = Image.new(mode, (64, 64), transparency)
    if mode == "P":
        picture.putpalette(bytes(range(12)))
    if not options:
        encoded = encode(picture, "PNG", transparency=transparency)
    else:
        bits = options["bits"]
        row = bytes(1) + bytes([int(f"{transparency:0{bits}b}" * (8 // bits), 2)]) * (64 * bits // 8)
        encoded = png_of(64, bits, 0, row * 64, struct.pack(">H", transparency))
    assert pixels(encoded).min() == 255


def png_of(side: int, bits: int, color: int, rows: bytes, transparency: bytes) -> bytes:
    """Return a PNG of filtered rows with transparency."""
    header = struct.pack(">IIBBBBB", side, side, bits, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tRNS", transparency), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return PNG[:8] + b"".join(bombs.png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize(("color", "channels"), [(0, 1), (2, 3)])
def test_png_transparency_of_16_bits_compares_all_bits(color: int, channels: int) -> None:
    """Two colors with the same upper byte are two colors."""
    for stored, white in ((0x1234, True), (0x1235, False), (0x1334, False)):
        rows = (b"\0" + struct.pack(">H", stored) * channels * 64) * 64
        encoded = png_of(64, 16, color, rows, struct.pack(">H", 0x1234) * channels)
        assert (pixels(encoded).min() == 255) == white


@pytest.mark.parametrize("body", [b"Exif\0\0" + EXIF_6, b"http://ns.adobe.com/xap/1.0/\0" + XMP_6])
def test_jpeg_orientation_is_found(body: bytes) -> None:
    assert orientation(JPEG[:2] + bombs.jpeg_segment(0xE1, body) + JPEG[2:]) == 6


def test_orientation_is_read_without_the_other_tags() -> None:
    """A directory with tags of millions of values, types that don't exist, and offsets behind the end."""
    entries = b"".join(struct.pack(">HHLL", tag, tag % 20, 2**31, 2**31) for tag in range(200))
    exif = b"MM\0*\0\0\0\x08" + struct.pack(">H", 201) + entries + EXIF_6[10:22]
    assert read_orientation(exif) == 6
    assert read_orientation(b"Exif\0\0" + EXIF_6) == 6
    assert read_orientation(b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x08\0\0\0\0\0\0\0") == 8
    for broken in (b"", b"II", exif[:40], b"II*\0\xff\xff\xff\xff", EXIF_6.replace(b"\0\x06", b"\0\x09"), EXIF_6[:20]):
        assert read_orientation(broken) == 1


def jpeg_with_frame(marker: int, bits: int = 8, layers: int = 3) -> bytes:
    at = JPEG.index(b"\xff\xc0")
    frame = struct.pack(">BBHBHHB", 0xFF, marker, 8 + 3 * layers, bits, 76, 100, layers) + bytes(3 * layers)
    return JPEG[:at] + frame + JPEG[at + 19 :]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: jpeg_with_frame(0xC1, bits=12), "a JPEG with 12 bits per sample"),
        (lambda: jpeg_with_frame(0xC3), "a JPEG with lossless coding"),
        (lambda: jpeg_with_frame(0xC5), "a JPEG with hierarchical coding"),
        (lambda: jpeg_with_frame(0xC9), "a JPEG with arithmetic coding"),
        (lambda: jpeg_with_frame(0xF7), "a JPEG extension"),
        (lambda: jpeg_with_frame(0xC0, layers=2), "a JPEG with 2 color components"),
        (lambda: b"RIFF$\0\0\0WAVEfmt " + bytes(30), "a WAVE sound"),
        (lambda: b"RIFF$\0\0\0AVI LIST" + bytes(30), "an AVI video"),
        (lambda: b"RIFF$\0\0\0CDR9" + bytes(30), "a RIFF file"),
        (lambda: b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (lambda: b"\xff\x0a" + bytes(30), "JPEG XL"),
        (lambda: encode(PICTURE, "JPEG2000"), "JPEG 2000"),
        (lambda: b"8BPS\0\1" + bytes(30), "Photoshop"),
        (lambda: b"\xef\xbb\xbf\n <svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (lambda: b"<?xml version='1.0'?><svg/>", "SVG"),
        (lambda: b"%PDF-1.7", "PDF"),
        (lambda: encode(make_picture(64, 64), "ICO"), "ICO"),
        (lambda: b"FUJIFILMCCD-RAW 0201", "camera raw"),
        (lambda: b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "camera raw"),
        (lambda: b"\0\0\0\x18ftypmp42\0\0\0\1mp42isom", "a video"),
        (lambda: b"PK\3\4" + bytes(30), "a zip archive"),
        (lambda: png_with(bombs.png_chunk(b"CgBI", bytes(4))), "CgBI"),
    ],
)
def test_what_is_not_supported_is_named(make: Callable[[], bytes], words: str) -> None:
    with pytest.raises(UnsupportedImageError, match=words):
        pixels(make())


def test_webp_needs_its_own_riff() -> None:
    encoded = encode(PICTURE, "WEBP")
    assert pixels(encoded).shape == (96, 96, 3)
    with pytest.raises(InvalidImageError):
        pixels(encoded[:11])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_garbage_behind_the_picture_is_ignored(kind: str) -> None:
    encoded = encode(PICTURE, kind)
    assert np.array_equal(pixels(encoded + b"garbage" * 1000), pixels(encoded))


def test_jfif_is_a_suffix() -> None:
    assert {".jfif", ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"} <= SUFFIXES


def test_threads_leave_no_filters_of_warnings_behind() -> None:
    """``catch_warnings`` in threads restored each other's filters in the wrong order, so some stayed for ever."""
    before = list(warnings.filters)
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "hello")
    encoded = [encode(PICTURE, "PNG", pnginfo=info), encode(PICTURE, "TIFF"), JPEG]
    threads = [threading.Thread(target=lambda: [pixels(each) for each in encoded * 10]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_an_mpo_is_its_first_picture() -> None:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (100, 76))])
    assert preprocess(buffer.getvalue(), SQUARE, LIMIT).info.format == "jpeg"
    assert pixels(buffer.getvalue()).std() > 10
