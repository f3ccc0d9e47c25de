"""Encoded bytes in, the uint8 crop that the model sees out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from serve_app.messages import ImageInfo, ImageStats
from serve_app.model_card import ImageTransform
from serve_app.preprocessing.decode import open_image
from serve_app.preprocessing.orientation import TO_UPRIGHT


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
        encoded: One JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC file, detected from its content; the first picture
            of several. EXIF orientation is applied; transparency is composed over white; every color mode becomes RGB.
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
    opened = open_image(encoded, max_pixels)
    crop = _resize_and_crop(opened.decode(), transform, 1 if opened.upright else opened.orientation)
    width, height = opened.size
    info = ImageInfo(format=opened.format.lower(), width=width, height=height, orientation=opened.orientation)
    return PreprocessedImage(np.asarray(crop), info)


def image_stats(pixels: np.ndarray) -> ImageStats:
    """Measure uint8 RGB pixels, (H, W, 3), on the green channel, the largest part of luminance.

    The sums are exact: of integers, in the narrowest type that holds them, which takes a third of the time of floats.
    """
    green = np.ascontiguousarray(pixels[:, :, 1])
    left, right = green[:, :-1], green[:, 1:]
    steps = np.maximum(left, right) - np.minimum(left, right)
    squares = np.square(green, dtype=np.uint16)  # 255 ** 2 is less than 2 ** 16
    total, total_steps, total_squares = (
        int(each.sum(1, dtype=np.uint32).sum(dtype=np.uint64)) for each in (green, steps, squares)
    )
    deviation = math.sqrt(green.size * total_squares - total**2) / green.size
    return ImageStats(total / green.size, deviation, total_steps / max(1, steps.size))


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
    return kept.transpose(TO_UPRIGHT[orientation]) if orientation in TO_UPRIGHT else kept
