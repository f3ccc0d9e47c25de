"""Encoded bytes in, a small upright RGB picture for the screen out."""

from __future__ import annotations

from PIL import Image

from serve_app.preprocessing.decode import open_image
from serve_app.preprocessing.orientation import TO_UPRIGHT


def make_thumbnail(encoded: bytes, max_pixels: int, side_px: int) -> Image.Image:
    """Decode an image as the service does, upright, RGB, on white where it is transparent.

    Args:
        encoded: One file of an accepted format; the first picture of several counts.
        max_pixels: Largest number of pixels that the header may declare.
        side_px: Longest side of the result; a smaller image keeps its size.

    Raises:
        UnsupportedImageError: Not an image of an accepted format (415).
        ImageTooLargeError: The header declares more than ``max_pixels`` (413).
        InvalidImageError: Empty, truncated, corrupt or crafted to decode slowly (422).
    """
    opened = open_image(encoded, max_pixels)
    opened.image.draft("RGB", (side_px, side_px))  # a JPEG is decoded at a half, quarter or eighth of its size
    picture = opened.decode()
    picture.thumbnail((side_px, side_px))
    turn = None if opened.upright else TO_UPRIGHT.get(opened.orientation)
    return picture if turn is None else picture.transpose(turn)
