"""Opens an encoded image if decoding it is bounded in time and memory; reads the header only."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.WebPImagePlugin import WebPImageFile

from serve_app.errors import ImageTooLargeError, InvalidImageError
from serve_app.preprocessing import bmp, heif, jpeg, png, tiff
from serve_app.preprocessing.color import to_rgb
from serve_app.preprocessing.depth import Samples
from serve_app.preprocessing.formats import detect_format
from serve_app.preprocessing.limits import check_pixels
from serve_app.preprocessing.orientation import read_orientation

# Limits that ordinary files do not reach. Pillow reads a file piece by piece, and libjpeg visits every block of the
# image for every scan, however few bytes the piece or the scan has.
MAX_READS = 100_000  # a GIF block takes about two reads
MAX_SCANS = 20  # for a JPEG of max_pixels; a smaller JPEG may have more
# Exceptions of the decoders for broken data; libavif's and libheif's raise RuntimeError.
DECODER_ERRORS = (OSError, ValueError, SyntaxError, ArithmeticError, LookupError, EOFError, TypeError, RuntimeError)
# Pillow warns about odd metadata and large images; this package decides on both. The filter is set once per process:
# `warnings.catch_warnings` is not safe in threads and left filters behind.
warnings.filterwarnings("ignore", module=r"PIL\.")


class OpenedImage(NamedTuple):
    """An image whose header has been read and checked."""

    image: ImageFile  # not decoded
    format: str  # a key of FORMATS
    size: tuple[int, int]  # width and height in pixels as stored, before the orientation is applied
    orientation: int = 1  # EXIF, 1-8
    upright: bool = False  # decoding applies the orientation
    layout: Samples | bmp.Masks | None = None  # what the numbers mean of an image that Pillow decodes as plain numbers

    def decode(self) -> Image.Image:
        """Return the pixels as RGB, 8 bits; transparency over white.

        Raises:
            InvalidImageError: The data is truncated or corrupt (422).
        """
        try:
            return to_rgb(self.image, self.layout)
        except DECODER_ERRORS as error:
            raise InvalidImageError(f"the {self.format} data is truncated or corrupt ({error})") from error


def open_image(encoded: bytes, max_pixels: int) -> OpenedImage:
    """Read an image's header and refuse files that would take too much time or memory to decode.

    Nothing is decoded. The reader of the detected format is called directly, so Pillow tries no other formats, does
    not apply its own size check, and opens an MPO file as its first image. Metadata other than the orientation is not
    read, so a sound picture behind broken or large metadata is opened.

    Args:
        encoded: One file; its first bytes tell the format.
        max_pixels: Largest number of pixels that the header may declare.

    Raises:
        UnsupportedImageError: The format is not in FORMATS, or is stored in a slow or rare way (415).
        ImageTooLargeError: The header declares too many pixels, or tiles that cover too many (413).
        InvalidImageError: The header is broken, or crafted to be read slowly (422).
    """
    if not encoded:
        raise InvalidImageError("the image is empty (0 bytes)")
    kind = detect_format(encoded)
    try:
        opened = _open(kind, encoded, max_pixels)
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"the header declares over {max_pixels:,} pixels, the limit") from error
    except DECODER_ERRORS as error:
        raise InvalidImageError(f"starts like {kind}, but its header is truncated or corrupt ({error})") from error
    check_pixels(opened.size, max_pixels)
    return opened


def _open(kind: str, encoded: bytes, max_pixels: int) -> OpenedImage:
    if kind == "JPEG":
        header = jpeg.read_header(encoded)
        check_pixels(header.size, max_pixels)
        visited, (width, height) = header.scans * header.size[0] * header.size[1], header.size
        if visited > MAX_SCANS * max_pixels:
            raise InvalidImageError(
                f"a JPEG of {width} x {height} in {header.scans} scans is too slow; save it with fewer"
            )
        retry = jpeg.TRIES * visited <= MAX_SCANS * max_pixels
        return OpenedImage(jpeg.JpegReader(encoded, header, retry), kind, header.size, header.orientation)
    if kind == "PNG":
        chunks = png.read_header(encoded)
        return OpenedImage(png.PngReader(chunks), kind, chunks.size, chunks.orientation)
    if kind == "TIFF":
        image, samples, orientation = tiff.open_tiff(encoded, max_pixels)
        size = image.width // (samples.numbers_per_pixel if samples else 1), image.height
        return OpenedImage(image, kind, size, orientation, layout=samples)
    if kind == "BMP":
        image, masks = bmp.open_bmp(encoded, io.BytesIO(encoded))
        return OpenedImage(image, kind, image.size, layout=masks)
    if kind in ("AVIF", "HEIF"):
        image, picture = heif.open_heif(encoded, max_pixels)
        return OpenedImage(image, picture.format, picture.size, picture.orientation, upright=picture.format == "HEIF")
    if kind == "WEBP":
        image = WebPImageFile(io.BytesIO(encoded))
        orientation = read_orientation(image.info.get("exif", b""), image.info.get("xmp", b""))
        return OpenedImage(image, kind, image.size, orientation)
    image = GifImageFile(_Reader(encoded))
    return OpenedImage(image, kind, image.size)


class _Reader(io.BytesIO):
    """A file with a limited number of reads, which bounds Pillow's loops over a GIF's blocks."""

    _left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise InvalidImageError("the header and data are in too many pieces; save the image again")
        return super().read(size)
