"""The limit on the pixels that a header declares."""

from __future__ import annotations

from serve_app.errors import ImageTooLargeError


def check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    """Raise ImageTooLargeError (413) where a header declares more than ``max_pixels``."""
    width, height = size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the header declares {width} x {height} = {width * height:,} pixels; the limit is {max_pixels:,}"
        )
