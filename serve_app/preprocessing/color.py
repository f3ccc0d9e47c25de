"""Any decoded image -> RGB of 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from serve_app.preprocessing import bmp, depth
from serve_app.preprocessing.png import PngReader

TILE_PX = 2048  # modes are converted in squares of this side, so that temporary copies stay small
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def to_rgb(image: Image.Image, layout: depth.Samples | bmp.Masks | None = None) -> Image.Image:
    """Convert any Pillow mode to RGB: transparency over white, more than 8 bits to 8 bits.

    Args:
        image: Not yet decoded, or decoded.
        layout: What the numbers of an image mean that Pillow decodes as plain numbers.

    Raises:
        OSError: The file's data is broken. Pillow's decoders also raise the other DECODER_ERRORS.
    """
    image.load()
    if image.mode == "RGB" and layout is None and not _has_transparency(image):
        return image
    size, convert = image.size, _converter(image, layout)
    if isinstance(layout, depth.Samples):
        size = (image.width // layout.numbers_per_pixel, image.height)
    rgb = Image.new("RGB", size)
    side = TILE_PX if layout is None else TILE_PX // 4  # numbers are converted in float64, several copies of it
    for box in _squares(size, side):
        part = convert(box)
        opaque = part.mode == "RGB" and "transparency" not in part.info
        rgb.paste(part if opaque else _on_white(part), box)
    return rgb


def _has_transparency(image: Image.Image) -> bool:
    return "transparency" in image.info or getattr(image, "transparent", None) is not None


def _squares(size: tuple[int, int], side: int) -> Iterator[Box]:
    width, height = size
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield left, top, min(left + side, width), min(top + side, height)


def _converter(image: Image.Image, layout: depth.Samples | bmp.Masks | None) -> Callable[[Box], Image.Image]:
    """Return the function that converts a part of this image to RGB, or to a mode with transparency."""
    if isinstance(layout, bmp.Masks):
        return bmp.converter(image, layout)
    if layout is None and image.mode in ("I", "F"):  # in memory only
        layout = depth.Samples("i4" if image.mode == "I" else "f4")
    if layout is None and image.mode.startswith("I;16"):
        transparent = getattr(image, "transparent", None)
        layout = depth.Samples("u2", black=0, white=65535, transparent=transparent and transparent[0])
    if layout is not None:
        return depth.converter(image, layout)
    if isinstance(image, PngReader) and image.transparent is not None:
        return _rgb_16_with_transparency(image, image.transparent)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return image.crop
    return lambda box: image.crop(box).convert("RGB")


def _rgb_16_with_transparency(image: PngReader, transparent: tuple[int, ...]) -> Callable[[Box], Image.Image]:
    """Compare all 16 bits: Pillow keeps the upper ones, so the image is decoded again for the lower ones."""
    low = image.low_bytes()
    low.load()

    def convert(box: Box) -> Image.Image:
        values = np.asarray(image.crop(box)).astype(np.uint16) << 8 | np.asarray(low.crop(box))
        opacity = np.where((values == transparent).all(-1), 0, 255).astype(np.uint8)
        return Image.fromarray(np.concatenate([values >> 8, opacity[..., None]], -1).astype(np.uint8))

    return convert


def _on_white(part: Image.Image) -> Image.Image:
    # Pillow converts a premultiplied mode only to the same mode with straight alpha.
    straight = {"La": "LA", "RGBa": "RGBA"}.get(part.mode)
    rgba = (part.convert(straight) if straight else part).convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")
