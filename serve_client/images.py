"""Turns what callers have into encoded images: files, bytes, file objects, Pillow images, arrays.

Pillow and numpy are not dependencies: an object of theirs exists only where its library is loaded.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, TypeAlias, Union

from serve_client.errors import UnreadableImageError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# A str is a path, or an address if it begins with http:// or https://. `|` would evaluate the quoted parts.
ImageInput: TypeAlias = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, "IO[bytes]", "Image.Image", "np.ndarray"
]
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
PNG_COLOR_TYPES = {1: 0, 3: 2, 4: 6}  # channels -> grayscale, RGB, RGBA
PNG_LEVEL = 1  # of zlib: a fast one, because the image is decoded again at once
SUB_FILTER = 1  # of PNG: each byte minus that of the pixel to its left


@dataclass(frozen=True)
class EncodedImage:
    """An image file in memory; ``name`` is its file name or address."""

    data: bytes = field(repr=False)
    name: str | None = None


def is_address(image: object) -> bool:
    """Return whether an input is an address from which the client fetches the image."""
    return isinstance(image, str) and image.lower().startswith(("http://", "https://"))


def encode(image: ImageInput) -> EncodedImage:
    """Read or encode an image.

    Files and bytes are sent as they are. Pillow images and arrays become PNG, without loss. A Pillow image is first
    turned upright as its EXIF orientation says, because PNG has no room for it.

    Args:
        image: A path; bytes; a binary file object; a Pillow image; or uint8 samples of shape (height, width),
            (height, width, 3) for RGB or (height, width, 4) for RGBA.

    Raises:
        UnreadableImageError: The file cannot be read, or the object is none of these.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return EncodedImage(bytes(image))
    if isinstance(image, str | os.PathLike):
        return _read(os.fspath(image))
    pillow, numpy = sys.modules.get("PIL.Image"), sys.modules.get("numpy")
    if pillow and isinstance(image, pillow.Image):
        return EncodedImage(_encode_pillow(image), name_of(image))
    if numpy and isinstance(image, numpy.ndarray):
        return EncodedImage(encode_png(image))
    if hasattr(image, "read"):
        data = image.read()
        if isinstance(data, bytes):
            return EncodedImage(data, name_of(image))
        raise UnreadableImageError("the file object returns text: open the file with mode 'rb'")
    raise UnreadableImageError(
        f"an image cannot be of type {type(image).__name__}: give a path, bytes, a binary file object, a Pillow image, "
        "a uint8 array or an http(s) address"
    )


def _read(path: str) -> EncodedImage:
    try:
        with open(path, "rb") as file:
            return EncodedImage(file.read(), name_of(path))
    except OSError as error:
        raise UnreadableImageError(f"{path}: {error.strerror or error}") from error


def name_of(image: object) -> str | None:
    """Return an address, or the file name of a path, a file object or an opened Pillow image; None if it has none."""
    if isinstance(image, str) and is_address(image):
        return image
    if not isinstance(image, str | os.PathLike):
        image = getattr(image, "filename", None) or getattr(image, "name", None)  # of Pillow, of file objects
    name = os.fspath(image) if isinstance(image, str | os.PathLike) else None
    return os.path.basename(name) or None if isinstance(name, str) else None


def _encode_pillow(image: Image.Image) -> bytes:
    from PIL import ImageOps

    buffer = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        pictured = upright if upright.mode in PNG_MODES else upright.convert("RGB")
        pictured.save(buffer, "PNG", compress_level=PNG_LEVEL)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow reads the file only now, and raises all three
        raise UnreadableImageError(f"the Pillow image cannot be encoded: {error}") from error
    return buffer.getvalue()


def encode_png(array: np.ndarray) -> bytes:
    """Encode uint8 samples of shape (height, width[, 1, 3 or 4]) as a PNG, without Pillow."""
    import numpy as np

    pixels = array[..., None] if array.ndim == 2 else array
    if array.dtype != np.uint8:
        raise UnreadableImageError(f"an array of {array.dtype}: scale it to 0-255 and convert it to uint8")
    if pixels.ndim != 3 or pixels.shape[2] not in PNG_COLOR_TYPES or 0 in pixels.shape:
        raise UnreadableImageError(
            f"an array of shape {array.shape}: give one image of shape (height, width), (height, width, 3) or "
            "(height, width, 4)"
        )
    height, width, channels = pixels.shape
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = SUB_FILTER
    filtered[:, 1 : 1 + channels] = pixels[:, 0]
    filtered[:, 1 + channels :] = (pixels[:, 1:] - pixels[:, :-1]).reshape(height, -1)  # wraps around, as PNG asks
    header = struct.pack(">IIBBBBB", width, height, 8, PNG_COLOR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), PNG_LEVEL)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
