"""Opens an encoded image if decoding it is bounded in time and memory; reads the header only."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from serve_app.errors import ImageTooLargeError, InvalidImageError, UnsupportedImageError

# Accepted formats and the first bytes of their files.
FORMATS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})  # of their file names
# Limits that ordinary files do not reach. Pillow reads a file piece by piece, and libjpeg visits every block of the
# image for every scan, however few bytes the piece or the scan has.
MAX_READS = 100_000  # an 8 kB piece takes about four reads; 20 MB in such pieces takes 10 000
MAX_EXIF_SEGMENTS = 64  # Pillow appends each segment to a copy of the segments before it
MAX_JPEG_SEGMENTS = 20_000
MAX_SCANS = 20  # for a JPEG of max_pixels; a smaller JPEG may have more
MAX_STRIPS = 20_000  # strips or tiles of a TIFF
TIFF_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)  # none, fax, LZW, JPEG, deflate, PackBits; bounded in libtiff
# Without `+` for fill bytes: with it, the search takes time quadratic in their number.
JPEG_SEGMENT = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
EOI, SOS, ARITHMETIC = 0xD9, 0xDA, range(0xC9, 0xD0)


def open_image(encoded: bytes, max_pixels: int) -> ImageFile:
    """Read an image's header and refuse files that would take too much time or memory to decode.

    Nothing is decoded. The reader of the detected format is called directly, so Pillow tries no other formats, does
    not apply its own size check, and opens an MPO file as its first image.

    Args:
        encoded: One file; its first bytes tell the format.
        max_pixels: Largest number of pixels that the header may declare.

    Raises:
        UnsupportedImageError: The format is not in FORMATS, or is stored in a slow or rare way (415).
        ImageTooLargeError: The header declares too many pixels, or TIFF tiles that cover too many (413).
        InvalidImageError: The header is broken, or crafted to be read slowly (422).
    """
    kind = next((name for name, beginnings in FORMATS.items() if encoded.startswith(beginnings)), None)
    if kind is None:
        raise UnsupportedImageError(
            f"not a JPEG, PNG, WebP, GIF, BMP or TIFF image ({len(encoded)} bytes, starting with {encoded[:8]!r})"
        )
    scans = _scans(encoded) if kind == "JPEG" else 1
    try:
        image = READERS[kind](_Reader(encoded))
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"the header declares over {max_pixels:,} pixels, the limit") from error
    except DECODER_ERRORS as error:
        raise InvalidImageError(f"starts like {kind}, but its header is truncated or corrupt ({error})") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the header declares {width} x {height} = {width * height:,} pixels; the limit is {max_pixels:,}"
        )
    if scans * width * height > MAX_SCANS * max_pixels:
        raise InvalidImageError(f"a JPEG of {width} x {height} in {scans} scans is too slow; save it with fewer")
    if isinstance(image, TiffImageFile):
        _check_tiles(image, max_pixels)
    if image.tile and image.tile[0].codec_name == "bmp_rle":
        raise UnsupportedImageError("a BMP with run-length encoding is not supported; save it without, or as PNG")
    return image


def _scans(encoded: bytes) -> int:
    """Count the scans of a JPEG as libjpeg finds them.

    Raises:
        InvalidImageError: Too many segments, or arithmetic coding, which decodes slowly.
    """
    offset, segments, scans = 2, 0, 0
    while segment := JPEG_SEGMENT.search(encoded, offset):
        marker, body = segment[1][0], segment.end()
        segments += 1
        if marker == EOI:
            break
        if marker in ARITHMETIC:
            raise InvalidImageError("a JPEG with arithmetic coding is not supported; save it without")
        if segments > MAX_JPEG_SEGMENTS:
            raise InvalidImageError(f"a JPEG with more than {MAX_JPEG_SEGMENTS} segments; save the image again")
        scans += marker == SOS
        offset = body + int.from_bytes(encoded[body : body + 2])
    if encoded.count(b"Exif\0\0") > MAX_EXIF_SEGMENTS:
        raise InvalidImageError(f"a JPEG with more than {MAX_EXIF_SEGMENTS} Exif segments; save the image without them")
    return scans


def _check_tiles(image: TiffImageFile, max_pixels: int) -> None:
    """Refuse tiles that are much larger than the image, because libtiff allocates complete tiles."""
    tags = image.tag_v2
    pixels = 1
    for side, tile in ((256, 322), (257, 323)):  # width, length
        image_px, tile_px = tags[side], tags.get(tile)
        pixels *= -(-image_px // tile_px) * tile_px if isinstance(tile_px, int) and tile_px > 0 else image_px
    if pixels > 2 * max_pixels:
        raise ImageTooLargeError(f"the TIFF's tiles cover {pixels:,} pixels; the limit for tiles is {2 * max_pixels:,}")


class _Reader(io.BytesIO):
    """A file with a limited number of reads, which bounds Pillow's loops over chunks, blocks, segments and tags."""

    _left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise InvalidImageError("the header and data are in too many pieces; save the image again")
        return super().read(size)


class _TiffImageFile(TiffImageFile):
    """A TIFF whose strips and tiles are counted before Pillow lists them and libtiff allocates them."""

    def _setup(self) -> None:
        compression = self.tag_v2.get(259, 1)
        if compression not in TIFF_COMPRESSIONS:
            raise UnsupportedImageError(
                f"a TIFF with compression {compression!s:.20} is not supported; save it with LZW"
            )
        for tag in (273, 324):  # offsets of strips, tiles
            offsets = self.tag_v2.get(tag)
            if isinstance(offsets, tuple) and len(offsets) > MAX_STRIPS:
                raise InvalidImageError(f"a TIFF with {len(offsets)} strips or tiles; the limit is {MAX_STRIPS}")
        super()._setup()


READERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": _TiffImageFile,
}
# Exceptions of Pillow's decoders for broken data.
DECODER_ERRORS = (OSError, ValueError, SyntaxError, ArithmeticError, LookupError, EOFError, TypeError)
