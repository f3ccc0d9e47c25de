"""Stage 2/3 · encoded bytes -> an image whose header is read, if decoding it is bounded in time and memory."""

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

# Accepted formats and how their files begin.
FORMATS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})  # of their file names
# What no honest file reaches. Pillow reads a file piece by piece, and libjpeg visits every block of
# the picture for every scan, however few bytes the piece or scan has.
MAX_READS = 100_000  # an 8 kB piece takes about four; 20 MB in such pieces takes 10 000
MAX_EXIF_SEGMENTS = 64  # each is appended to a copy of those before
MAX_JPEG_SEGMENTS = 20_000
MAX_SCANS = 20  # of a JPEG that has max_pixels; a smaller one may have more
MAX_STRIPS = 20_000  # of a TIFF, or tiles
TIFF_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)  # none, fax, LZW, JPEG, deflate, PackBits; bounded in libtiff
JPEG_SEGMENT = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")  # no `+` for fill bytes: it takes the square of their number
EOI, SOS, ARITHMETIC = 0xD9, 0xDA, range(0xC9, 0xD0)


def open_image(encoded: bytes, max_pixels: int) -> ImageFile:
    """Read an image's header, and refuse what would take too long or too much room to decode.

    Nothing is decoded. Pillow's own check of sizes, MPO files (the first picture is shown) and
    formats that nobody asked for are left out by going straight to the reader of the format.

    Args:
        encoded: One file, known by how it begins.
        max_pixels: Most pixels that its header may declare.

    Raises:
        UnsupportedImageError: None of FORMATS, or a way of storing one that is slow or rare (415).
        ImageTooLargeError: More pixels, or TIFF tiles that cover more (413).
        InvalidImageError: Its header is broken, or made to be slow to read (422).
    """
    kind = next((name for name, beginnings in FORMATS.items() if encoded.startswith(beginnings)), None)
    if kind is None:
        raise UnsupportedImageError(
            f"not a JPEG, PNG, WebP, GIF, BMP or TIFF image (the {len(encoded)} bytes start with {encoded[:8]!r})"
        )
    scans = _scans(encoded) if kind == "JPEG" else 1
    try:
        image = READERS[kind](_Reader(encoded))
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"the header declares over {max_pixels:,} pixels, the limit") from error
    except DECODER_ERRORS as error:
        raise InvalidImageError(f"begins like {kind}, but its header is truncated or corrupt ({error})") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the header declares {width} x {height} = {width * height:,} pixels; the limit is {max_pixels:,}"
        )
    if scans * width * height > MAX_SCANS * max_pixels:
        raise InvalidImageError(f"a JPEG of {width} x {height} in {scans} scans; save it again with fewer")
    if isinstance(image, TiffImageFile):
        _check_tiles(image, max_pixels)
    if image.tile and image.tile[0].codec_name == "bmp_rle":
        raise UnsupportedImageError("a BMP with run-length encoding; save it without, or as PNG")
    return image


def _scans(encoded: bytes) -> int:
    """Count a JPEG's scans, as libjpeg finds them.

    Raises:
        InvalidImageError: More segments than it may have, or arithmetic coding, which is slow.
    """
    at, segments, scans = 2, 0, 0
    while found := JPEG_SEGMENT.search(encoded, at):
        marker, body = found[1][0], found.end()
        segments += 1
        if marker == EOI:
            break
        if marker in ARITHMETIC:
            raise InvalidImageError("a JPEG with arithmetic coding; save it again without")
        if segments > MAX_JPEG_SEGMENTS:
            raise InvalidImageError(f"a JPEG of more than {MAX_JPEG_SEGMENTS} segments; save it again")
        scans += marker == SOS
        at = body + int.from_bytes(encoded[body : body + 2])
    if encoded.count(b"Exif\0\0") > MAX_EXIF_SEGMENTS:
        raise InvalidImageError(f"a JPEG with more than {MAX_EXIF_SEGMENTS} Exif segments; save it again without")
    return scans


def _check_tiles(image: TiffImageFile, max_pixels: int) -> None:
    """Refuse tiles that are much larger than the picture: libtiff makes room for whole ones."""
    tags = image.tag_v2
    pixels = 1
    for side, tile in ((256, 322), (257, 323)):  # width, length
        whole, piece = tags[side], tags.get(tile)
        pixels *= -(-whole // piece) * piece if isinstance(piece, int) and piece > 0 else whole
    if pixels > 2 * max_pixels:
        raise ImageTooLargeError(f"the TIFF's tiles cover {pixels:,} pixels; twice the limit is {2 * max_pixels:,}")


class _Reader(io.BytesIO):
    """A file that can be read only so often: Pillow's loops over chunks, blocks, segments and tags end here."""

    _left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise InvalidImageError("its header and data are in too many pieces; save it again")
        return super().read(size)


class _TiffImageFile(TiffImageFile):
    """A TIFF whose strips and tiles are counted before Pillow lists them and libtiff makes room for them."""

    def _setup(self) -> None:
        compression = self.tag_v2.get(259, 1)
        if compression not in TIFF_COMPRESSIONS:
            raise UnsupportedImageError(f"a TIFF with compression {compression!s:.20}; save it with LZW, or as PNG")
        for tag in (273, 324):  # offsets of strips, tiles
            offsets = self.tag_v2.get(tag)
            if isinstance(offsets, tuple) and len(offsets) > MAX_STRIPS:
                raise InvalidImageError(f"a TIFF of {len(offsets)} strips or tiles; at most {MAX_STRIPS} are read")
        super()._setup()


READERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": _TiffImageFile,
}
# What Pillow's decoders raise on broken data; none of these is ours.
DECODER_ERRORS = (OSError, ValueError, SyntaxError, ArithmeticError, LookupError, EOFError, TypeError)
