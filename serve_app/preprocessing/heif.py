"""Opens AVIF and HEIF images with Pillow's and pillow-heif's decoders, behind the checks of isobmff.py."""

from __future__ import annotations

import functools
import io
from typing import Any

from PIL import AvifImagePlugin
from PIL.AvifImagePlugin import AvifImageFile
from PIL.ImageFile import ImageFile

from serve_app.errors import UnsupportedImageError
from serve_app.preprocessing.isobmff import Picture, read_picture

# One image is decoded per core already.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def open_heif(encoded: bytes, max_pixels: int) -> tuple[ImageFile, Picture]:
    """Open the primary picture of an AVIF or HEIF file.

    AVIF's decoder returns the stored pixels; HEIF's decoder has turned them upright.

    Raises:
        ImageTooLargeError: Too many pixels, in the header or in the data (413).
        UnsupportedImageError: Another kind of picture, or pillow-heif is not installed (415).
        InvalidImageError: The file is truncated or corrupt (422).
        OSError: The decoder finds the file corrupt; also the other DECODER_ERRORS.
    """
    picture = read_picture(encoded, max_pixels)
    patched = bytearray(encoded)
    for at, replacement in picture.patches:
        patched[at : at + len(replacement)] = replacement
    file = io.BytesIO(patched)
    del patched
    if picture.format == "AVIF":
        return _AvifReader(file), picture
    return heif_reader()(file), picture


class _AvifReader(AvifImageFile):
    """An AVIF whose decoder, which keeps up to 8 bytes per pixel, is released once there are pixels."""

    def load(self) -> Any:
        pixels = super().load()
        self._decoder = None
        return pixels


@functools.cache
def heif_reader() -> Any:
    """Return the class that reads HEIF; imported at the first such image."""
    try:
        import pillow_heif
    except ModuleNotFoundError as error:
        raise UnsupportedImageError(
            "HEIC is not supported here (the package pillow-heif is not installed); save the image as JPEG"
        ) from error
    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.options.THUMBNAILS = pillow_heif.options.DEPTH_IMAGES = pillow_heif.options.AUX_IMAGES = False
    return pillow_heif.HeifImageFile
