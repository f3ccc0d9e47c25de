"""Encoded bytes in, the uint8 crop that the model sees out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from serve_app.errors import InvalidImageError
from serve_app.messages import ImageInfo, ImageStats
from serve_app.model_card import ImageTransform
from serve_app.preprocessing.decode import DECODER_ERRORS, open_image

EXIF_ORIENTATION = 0x0112
TILE_PX = 2048  # modes are converted in squares of this side, so that temporary copies stay small
# EXIF orientation -> the operation that turns the stored image upright (EXIF 2.32, 4.6.4).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PreprocessedImage(NamedTuple):
    """One decoded and cropped image."""

    pixels: np.ndarray  # uint8, (crop_px, crop_px, 3), RGB, values 0-255, upright
    info: ImageInfo


def preprocess(encoded: bytes, transform: ImageTransform, max_pixels: int) -> PreprocessedImage:
    """Decode one image into the crop that the model sees, still as uint8.

    The short side becomes ``resize_px`` (bilinear, antialiased), then the center ``crop_px`` square is kept. One
    step computes only the kept pixels, and turns them upright last, when they are few. Scaling and mean/std wait for
    the classifier's device: uint8 crosses to the next stage in a quarter of the bytes of float32.

    One decode is bounded: at most 24 bytes of memory per pixel of ``max_pixels`` (WebP takes 17, a progressive JPEG
    11), and about five seconds for the worst files within the default limits.

    Args:
        encoded: One JPEG, PNG, WebP, GIF (first frame), BMP or TIFF file, detected from its content. EXIF
            orientation is applied; transparency is composed over white; every color mode becomes RGB.
        transform: Sizes, from the model card.
        max_pixels: Largest number of pixels that the header may declare.

    Raises:
        UnsupportedImageError: Not an image in those formats (415).
        ImageTooLargeError: The header declares more than ``max_pixels``; nothing has been decoded yet (413).
        InvalidImageError: Empty, truncated, corrupt or crafted to decode slowly (422).

    Source:
        torchvision's ImageClassification transforms. tests/unit/preprocessing/test_transform.py holds the parity,
        tests/unit/preprocessing/test_hostile_images.py the bounds.
    """
    if not encoded:
        raise InvalidImageError("the image is empty (0 bytes)")
    with warnings.catch_warnings():
        # Pillow warns about odd metadata and large images; this function decides on both.
        warnings.simplefilter("ignore")
        image = open_image(encoded, max_pixels)
        orientation = _orientation(image)
        try:
            rgb = to_rgb(image)
            upright = image.format == "TIFF"  # Pillow has applied a TIFF's orientation already
            crop = _resize_and_crop(rgb, transform, 1 if upright else orientation)
        except DECODER_ERRORS as error:
            raise InvalidImageError(f"the {image.format} data is truncated or corrupt ({error})") from error
    width, height = image.size[::-1] if upright and orientation > 4 else image.size
    info = ImageInfo(format=str(image.format).lower(), width=width, height=height, orientation=orientation)
    return PreprocessedImage(np.asarray(crop), info)


def image_stats(pixels: np.ndarray) -> ImageStats:
    """Measure uint8 RGB pixels, (H, W, 3), on the green channel, the largest part of luminance."""
    green = pixels[:, :, 1].astype(np.int16)
    return ImageStats(float(green.mean()), float(green.std()), float(np.abs(np.diff(green, axis=1)).mean()))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB: transparency over white, 16-bit and float to 8 bits."""
    image.load()  # decodes: OSError where the file's data is broken
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    convert = _converter(image)
    rgb = Image.new("RGB", image.size)
    for box in _tiles(image.size):
        rgb.paste(convert(image.crop(box)), box)
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        return 1  # a good image with broken metadata is still classified
    return value if value in UPRIGHT else 1


def _tiles(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    width, height = size
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            yield left, top, min(left + TILE_PX, width), min(top + TILE_PX, height)


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return the function that converts a part of this image to RGB."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        scale = _depth_scale(image)
        return lambda part: _depth_to_8_bit(part, scale)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return _on_white
    return lambda part: part.convert("RGB")


def _on_white(part: Image.Image) -> Image.Image:
    # Pillow converts a premultiplied mode only to the same mode with straight alpha.
    straight = {"La": "LA", "RGBa": "RGBA"}.get(part.mode)
    rgba = (part.convert(straight) if straight else part).convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _depth_scale(image: Image.Image) -> float:
    """Return the factor that maps 16-bit, 32-bit or float grayscale to 0-255."""
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
    """Resize the short side and keep the center; only the kept pixels are computed.

    torchvision rounds sizes down and offsets half to even. Its offsets count from the top left corner of the upright
    image, so they are mapped back to the stored image.
    """
    width, height = image.size
    short, crop = min(width, height), transform.crop_px
    resized = (transform.resize_px * width // short, transform.resize_px * height // short)
    left, top = (round((side - crop) / 2.0) for side in resized)
    if orientation in (2, 3, 7, 8):  # upright left is the stored right edge
        left = resized[0] - crop - left
    if orientation in (3, 4, 6, 7):  # upright top is the stored bottom edge
        top = resized[1] - crop - top
    scale_x, scale_y = width / resized[0], height / resized[1]
    box = (left * scale_x, top * scale_y, min((left + crop) * scale_x, width), min((top + crop) * scale_y, height))
    kept = image.resize((crop, crop), Image.Resampling.BILINEAR, box=box)
    return kept.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else kept
