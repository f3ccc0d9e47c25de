"""Stage 2/3 · encoded bytes -> uint8 pixels of the model's crop."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from serve_app.errors import ImageTooLargeError, InvalidImageError, UnsupportedImageError
from serve_app.schemas import ImageInfo, ImageTransform, PreprocessedImage

# Accepted formats and how their files begin.
FORMATS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
EXIF_ORIENTATION = 0x0112

# What no honest file reaches. Pillow reads a file piece by piece, and libjpeg visits every block of
# the picture for every scan, however few bytes the piece or scan has.
MAX_READS = 100_000  # an 8 kB piece takes about four; 20 MB in such pieces takes 10 000
MAX_EXIF_SEGMENTS = 64  # each is appended to a copy of those before
MAX_JPEG_SEGMENTS = 20_000
MAX_SCANS = 20  # of a JPEG that has max_pixels; a smaller one may have more
MAX_STRIPS = 20_000  # of a TIFF, or tiles
JPEG_SEGMENT = re.compile(rb"\xff+([\xc0-\xcf\xd9-\xfe])")
EOI, SOS, ARITHMETIC = 0xD9, 0xDA, range(0xC9, 0xD0)

# Pixels are converted in squares of this side, so that the copies on the way stay small.
TILE_PX = 2048

# EXIF orientation -> the operation that turns the stored picture upright (EXIF 2.32, 4.6.4).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def preprocess(encoded: bytes, transform: ImageTransform, max_pixels: int) -> PreprocessedImage:
    """Decode one image and cut the crop that the model sees, still as uint8.

    The short side becomes ``resize_px`` (bilinear, antialiased) and the centre
    ``crop_px`` square is kept. Both happen in one step that computes only the kept
    pixels, before the picture is turned upright, so turning costs next to nothing.
    Scaling and mean/std wait for the classifier's device: a quarter of the bytes of
    float32 cross to the next stage.

    Args:
        encoded: One JPEG, PNG, WebP, GIF (first frame), BMP or TIFF file, known by its
            content. EXIF orientation is honoured; transparency is laid on white; every
            colour mode becomes RGB.
        transform: Sizes, from the weights.
        max_pixels: Most pixels that a header may declare.

    Raises:
        UnsupportedImageError: Not an image in those formats (415).
        ImageTooLargeError: The header declares more than ``max_pixels``; nothing has
            been decoded yet (413).
        InvalidImageError: Empty, truncated or corrupt (422).

    Source:
        torchvision's ImageClassification transforms; parity is held by
        tests/unit/test_preprocess.py::test_equals_torchvision.
    """
    if not encoded:
        raise InvalidImageError("the image is empty (0 bytes)")
    with warnings.catch_warnings():
        # Pillow warns about odd metadata and large pictures; both are decided here.
        warnings.simplefilter("ignore")
        image = _open(encoded, max_pixels)
        orientation = _orientation(image)
        try:
            rgb = to_rgb(image)
            # Pillow has turned a TIFF upright by now.
            turned = image.format == "TIFF"
            crop = _resize_and_crop(rgb, transform, 1 if turned else orientation)
        except DECODER_ERRORS as error:
            raise InvalidImageError(f"the {image.format} data is truncated or corrupt ({error})") from error
    width, height = image.size[::-1] if turned and orientation > 4 else image.size
    info = ImageInfo(format=str(image.format).lower(), width=width, height=height, orientation=orientation)
    return PreprocessedImage(np.asarray(crop), info)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB: transparency over white, 16-bit and float to 8-bit.

    Raises:
        OSError: The file's data is broken (decoding happens here).
    """
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    convert = _converter(image)
    rgb = Image.new("RGB", image.size)
    for box in _tiles(image.size):
        rgb.paste(convert(image.crop(box)), box)
    return rgb


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
        tags = self.tag_v2
        pieces = max(len(np.atleast_1d(tags.get(tag, ()))) for tag in (273, 324))  # offsets of strips, tiles
        if pieces > MAX_STRIPS:
            raise InvalidImageError(f"a TIFF of {pieces} strips or tiles; at most {MAX_STRIPS} are read")
        super()._setup()  # type: ignore[no-untyped-call] # Pillow leaves it so


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


def _open(encoded: bytes, max_pixels: int) -> ImageFile:
    """Read the header, and refuse what would take too long or too much room to decode."""
    kind = next((name for name, beginnings in FORMATS.items() if encoded.startswith(beginnings)), None)
    if kind is None:
        raise UnsupportedImageError(
            f"not a JPEG, PNG, WebP, GIF, BMP or TIFF image (the {len(encoded)} bytes start with {encoded[:8]!r})"
        )
    scans = _scans(encoded) if kind == "JPEG" else 1
    try:
        image = READERS[kind](_Reader(encoded))
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"the header declares over {max_pixels / 1e6:.0f} megapixels, the limit") from error
    except DECODER_ERRORS as error:
        raise InvalidImageError(f"begins like {kind}, but its header is truncated or corrupt ({error})") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the header declares {width} x {height} = {width * height / 1e6:.1f} megapixels; "
            f"the limit is {max_pixels / 1e6:.1f}"
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
        raise ImageTooLargeError(
            f"the TIFF's tiles cover {pixels / 1e6:.1f} megapixels; twice the limit is {2 * max_pixels / 1e6:.1f}"
        )


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        return 1  # broken metadata around a good picture must not cost the answer
    return value if value in UPRIGHT else 1


def _tiles(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    width, height = size
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            yield left, top, min(left + TILE_PX, width), min(top + TILE_PX, height)


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What makes RGB of any part of this picture."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        scale = _depth_scale(image)
        return lambda part: _depth_to_8_bit(part, scale)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return _on_white
    return lambda part: part.convert("RGB")


def _on_white(part: Image.Image) -> Image.Image:
    # Premultiplied modes only convert to their straight twin first.
    straight = {"La": "LA", "RGBa": "RGBA"}.get(part.mode)
    rgba = (part.convert(straight) if straight else part).convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _depth_scale(image: Image.Image) -> float:
    """What 16-bit, 32-bit and float greyscale is multiplied with, by the range its format uses."""
    if image.mode.startswith("I;16"):
        return 255 / 65535
    parts = (np.asarray(image.crop(box)) for box in _tiles(image.size))
    brightest = max(float(np.nan_to_num(part).max()) for part in parts)
    if image.mode == "F":
        return 255.0 if brightest <= 1.0 else 1.0
    return 255 / 65535 if brightest > 255 else 1.0


def _depth_to_8_bit(part: Image.Image, scale: float) -> Image.Image:
    values = np.nan_to_num(np.asarray(part).astype(np.float64))
    return Image.fromarray(np.clip(np.round(values * scale), 0, 255).astype(np.uint8)).convert("RGB")


def _resize_and_crop(image: Image.Image, transform: ImageTransform, orientation: int) -> Image.Image:
    """Resize the short side and keep the centre, computing only the kept pixels.

    torchvision rounds sizes down and offsets to the nearest even; its offsets count from
    the upright picture's top left, so they are mapped back to the stored picture.
    """
    width, height = image.size
    short, crop = min(width, height), transform.crop_px
    resized = (
        transform.resize_px * width // short,
        transform.resize_px * height // short,
    )
    left, top = (round((side - crop) / 2.0) for side in resized)
    if orientation in (2, 3, 7, 8):  # upright counts from the stored right edge
        left = resized[0] - crop - left
    if orientation in (3, 4, 6, 7):  # upright counts from the stored bottom edge
        top = resized[1] - crop - top
    scale_x, scale_y = width / resized[0], height / resized[1]
    box = (
        left * scale_x,
        top * scale_y,
        min((left + crop) * scale_x, width),
        min((top + crop) * scale_y, height),
    )
    kept = image.resize((crop, crop), Image.Resampling.BILINEAR, box=box)
    return kept.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else kept
