"""Valid files of every accepted format, and mutations of them; the same seed gives the same bytes."""

from __future__ import annotations

import random
import struct
import zlib

import numpy as np
from PIL import Image

from tests.fuzz import bombs
from tests.support.photos import encode, encode_heic_16, encode_heic_grid, make_picture
from tests.support.tiff import make_tiff

ODD_NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def valid_files() -> list[bytes]:
    """Return small pictures in each format, mode and encoding that Pillow can write."""
    picture = make_picture(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [encode(picture, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    files += [
        encode(picture, "JPEG", progressive=True),
        encode(picture, "JPEG", subsampling=0, restart_marker_blocks=1),
    ]
    files += [encode(picture.convert(mode), "JPEG") for mode in ("L", "CMYK")]
    files += [encode(picture.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA", "I;16")]
    files += [encode(picture, "PNG", save_all=True, append_images=[picture]), bombs.png(40, 16, 6, 320)]
    files += [encode(picture.convert(mode), "GIF") for mode in ("L", "P")]
    files += [encode(picture, "GIF", save_all=True, append_images=[picture.rotate(9)], comment=b"hello")]
    files += [encode(picture.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")]
    files += [bombs.bmp_rle(16, b"\x10\x05\x00\x00" * 16)]
    files += [encode(picture.convert("RGBA"), "WEBP", lossless=lossless) for lossless in (False, True)]
    files += [encode(picture, "WEBP", save_all=True, append_images=[picture.rotate(9)])]
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files.append(encode(picture, "TIFF", compression=compression))
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I", "I;16", "F", "LAB"):
        of_mode = picture.convert("L").convert(mode) if mode in ("I", "I;16", "F") else picture
        files.append(encode(of_mode if mode in ("I", "I;16", "F", "LAB") else picture.convert(mode), "TIFF"))
    files += [encode(picture.convert("1"), "TIFF", compression="group4"), bombs.tiff_of_one_tile(64)]
    return [*files, *_deep_files(np.asarray(picture)), *_heif_files(picture)]


def _deep_files(pixels: np.ndarray) -> list[bytes]:
    """Return TIFF and BMP files that are decoded as plain numbers."""
    gray = pixels[..., 0] / 255
    files = [
        make_tiff((gray * 60_000).astype(kind), **layout) for kind in ("u2", "u4", "f4", "f8") for layout in LAYOUTS
    ]
    files += [make_tiff(gray.astype(np.float32), deflate=True, predictor=3)]
    files += [make_tiff((pixels / 255).astype(kind), 2) for kind in ("f2", "f4")]
    files += [make_tiff(pixels.astype(np.uint16) * 257, 2, planar=True, deflate=deflate) for deflate in (False, True)]
    masks = (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000), (0xF00, 0xF0, 0xF, 0xF000)
    return files + [bombs.bmp_of_masks(40, 30, bits, mask) for bits, mask in zip((32, 16), masks, strict=True)]


LAYOUTS = ({}, {"order": ">", "deflate": True}, {"tile": 16, "big": True})


def _heif_files(picture: Image.Image) -> list[bytes]:
    """Return AVIF and HEIC files: plain, turned, gray, transparent, tiled, deep, and of several pictures."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for kind in ("AVIF", "HEIF"):
        files += [encode(picture.convert(mode), kind, exif=exif.tobytes()) for mode in ("L", "RGB", "RGBA")]
        files += [encode(picture, kind, save_all=True, append_images=[picture.rotate(9)])]
    large = picture.resize((160, 120))
    deep = np.asarray(picture.convert("RGBA")).astype(np.uint16) * 257
    return [*files, encode_heic_grid(large), encode(large, "AVIF", tile_cols=1), encode_heic_16(deep, chroma=444)]


def mutate(files: list[bytes], chance: random.Random) -> bytes:
    """Return a valid file with one to four changes."""
    data = bytearray(chance.choice(files))
    for _ in range(chance.randint(1, 4)):
        if data:
            chance.choice(CHANGES)(data, chance, files)
    if data.startswith(b"\x89PNG") and chance.random() < 0.7:
        repair_png(data)
    return bytes(data)


def repair_png(data: bytearray) -> None:
    """Recompute the checksums, so that a change reaches the decoder behind them."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4


def _flip(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _number(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    """Overwrite 1, 2 or 4 bytes with an extreme number, most often in the header."""
    at = chance.randrange(min(len(data), chance.choice((32, 128, len(data)))))
    size, order = chance.choice((1, 2, 4)), chance.choice(("big", "little"))
    number = chance.choice(ODD_NUMBERS) % (1 << 8 * size)
    data[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]


def _truncate(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    del data[chance.randrange(len(data)) :]


def _cut(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.randint(1, 64)]


def _repeat(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    at, size = chance.randrange(len(data)), chance.randint(1, 256)
    data[at:at] = data[at : at + size] * chance.randint(1, 50)


def _noise(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    at = chance.randrange(len(data))
    data[at:at] = chance.randbytes(chance.randint(1, 64))


def _splice(data: bytearray, chance: random.Random, files: list[bytes]) -> None:
    """Join the head of this file and the tail of another."""
    other = chance.choice(files)
    data[chance.randrange(len(data)) :] = other[chance.randrange(len(other)) :]


CHANGES = (_flip, _flip, _number, _number, _number, _truncate, _cut, _repeat, _noise, _splice)
