"""Reads BMP headers: names what is not supported, and decodes the color masks that Pillow does not know."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile

from serve_app.errors import InvalidImageError, UnsupportedImageError

HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes, from OS/2 1.x to Windows V5
MASKS_AT = 54  # byte where the masks stand, behind a header of 40 bytes or in a longer one
RLE, BITFIELDS, ALPHA_BITFIELDS = (1, 2), 3, 6
COMPRESSIONS = {
    **dict.fromkeys(RLE, "run-length encoding"),
    4: "JPEG inside",
    5: "PNG inside",
    **dict.fromkeys((11, 12, 13), "CMYK colors"),
}
# Masks without alpha that Pillow decodes.
KNOWN = {
    (32, 0xFF0000, 0xFF00, 0xFF),
    (24, 0xFF0000, 0xFF00, 0xFF),
    (16, 0xF800, 0x7E0, 0x1F),
    (16, 0x7C00, 0x3E0, 0x1F),
}


class Masks(NamedTuple):
    """Which bits of a pixel's number are which color; 0 where there is none."""

    red: int
    green: int
    blue: int
    alpha: int


def open_bmp(encoded: bytes, file: io.BytesIO) -> tuple[ImageFile.ImageFile, Masks | None]:
    """Read the header.

    Returns:
        The image, and the masks of its pixels where Pillow decodes them as plain numbers.

    Raises:
        UnsupportedImageError: A compression, bit depth or header that is not decoded (415).
        InvalidImageError: The header is cut off (422).
    """
    size = int.from_bytes(encoded[14:18], "little")
    if len(encoded) < 26 or len(encoded) < 14 + size:
        raise InvalidImageError("starts like BMP, but its header is truncated")
    if size not in HEADERS:
        raise UnsupportedImageError(f"a BMP with a header of {size} bytes is not supported; save it again, or as PNG")
    if size == 12:
        return BmpImageFile(file), None
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", encoded, 18)
    if compression in COMPRESSIONS or compression not in (0, BITFIELDS, ALPHA_BITFIELDS):
        how = COMPRESSIONS.get(compression, f"compression {compression}")
        raise UnsupportedImageError(f"a BMP with {how} is not supported; save it without, or as PNG")
    if bits not in (1, 4, 8, 16, 24, 32):
        raise UnsupportedImageError(f"a BMP with {bits} bits per pixel is not supported; save it with 24, or as PNG")
    if not compression:
        return BmpImageFile(file), None
    stored = 4 if size >= 56 or compression == ALPHA_BITFIELDS else 3
    if len(encoded) < MASKS_AT + 4 * stored or bits not in (16, 24, 32):
        raise InvalidImageError("starts like BMP, but its color masks are missing")
    masks = Masks(*(*struct.unpack_from(f"<{stored}I", encoded, MASKS_AT), 0)[:4])
    if not any(masks):
        masks = Masks(0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    if bits == 24 or (not masks.alpha and (bits, *masks[:3]) in KNOWN and compression == BITFIELDS):
        return BmpImageFile(file), None
    if width <= 0 or not height:
        raise InvalidImageError(f"the BMP's header is corrupt ({width} x {height} pixels)")
    pixels_at = int.from_bytes(encoded[10:14], "little")
    return _MaskedReader(file, (width, abs(height)), bits, pixels_at, 1 if height < 0 else -1), masks


class _MaskedReader(ImageFile.ImageFile):
    """A BMP whose pixels are decoded as the numbers that are stored."""

    format = "BMP"

    def __init__(self, file: io.BytesIO, size: tuple[int, int], bits: int, offset: int, direction: int) -> None:
        self._layout = size, bits, offset, direction
        super().__init__(file)

    def _open(self) -> None:
        self._size, bits, offset, direction = self._layout
        self._mode, rawmode = ("I", "I;32S") if bits == 32 else ("I;16", "I;16")
        stride = (self._size[0] * bits + 31) // 32 * 4
        self.tile = [ImageFile._Tile("raw", (0, 0, *self._size), offset, (rawmode, stride, direction))]


def converter(image: Image.Image, masks: Masks) -> Callable[[tuple[int, int, int, int]], Image.Image]:
    """Return the function that converts a part of this image to RGB or RGBA.

    As in browsers, an alpha channel that is 0 everywhere counts as no alpha: many programs declare it and leave it
    empty.
    """

    def numbers_in(box: tuple[int, int, int, int]) -> np.ndarray:
        return np.asarray(image.crop(box)).astype(np.int64)

    rows = (numbers_in((0, top, image.width, min(top + 64, image.height))) for top in range(0, image.height, 64))
    opaque = not masks.alpha or not any((row & masks.alpha).any() for row in rows)
    channels = masks[:3] if opaque else masks

    def convert(box: tuple[int, int, int, int]) -> Image.Image:
        numbers = numbers_in(box)
        return Image.fromarray(np.stack([_level(numbers, mask) for mask in channels], -1))

    return convert


def _level(numbers: np.ndarray, mask: int) -> np.ndarray:
    """Return one channel, scaled to 0-255."""
    if not mask:
        return np.zeros(numbers.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    levels: np.ndarray = np.round(((numbers & mask) >> shift) * (255 / (mask >> shift))).astype(np.uint8)
    return levels
