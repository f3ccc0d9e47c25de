"""Stage 2/3 · encoded bytes -> uint8 pixels of the model's crop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from serve_app.errors import InvalidImageError
from serve_app.messages import ImageInfo, ImageStats, PreprocessedImage
from serve_app.model_card import ImageTransform
from serve_app.preprocessing.decode import DECODER_ERRORS, open_image

EXIF_ORIENTATION = 0x0112

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

    The short side becomes ``resize_px`` (bilinear, antialiased) and the center
    ``crop_px`` square is kept. Both happen in one step that computes only the kept
    pixels, before the picture is turned upright, so turning costs next to nothing.
    Scaling and mean/std wait for the classifier's device: a quarter of the bytes of
    float32 cross to the next stage.

    One decode is bounded whatever the file says: at most 24 bytes of memory for each pixel
    of ``max_pixels`` (WebP takes 17, a progressive JPEG 11), and about five seconds for the
    worst files within the default limits. A replica decodes one image per core at a time.

    Args:
        encoded: One JPEG, PNG, WebP, GIF (first frame), BMP or TIFF file, known by its
            content. EXIF orientation is honored; transparency is laid on white; every
            color mode becomes RGB.
        transform: Sizes, from the weights.
        max_pixels: Most pixels that a header may declare.

    Raises:
        UnsupportedImageError: Not an image in those formats (415).
        ImageTooLargeError: The header declares more than ``max_pixels``; nothing has
            been decoded yet (413).
        InvalidImageError: Empty, truncated, corrupt or made to be slow to decode (422).

    Source:
        torchvision's ImageClassification transforms; parity is held by
        tests/unit/preprocessing/test_transform.py::test_equals_torchvision, the bounds by
        tests/unit/preprocessing/test_hostile_images.py.
    """
    if not encoded:
        raise InvalidImageError("the image is empty (0 bytes)")
    with warnings.catch_warnings():
        # Pillow warns about odd metadata and large pictures; both are decided here.
        warnings.simplefilter("ignore")
        image = open_image(encoded, max_pixels)
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


def look(pixels: np.ndarray) -> ImageStats:
    """Measure how a crop looks, on its green channel, which is most of what the eye calls light.

    Args:
        pixels: uint8, (H, W, 3), RGB.
    """
    green = pixels[:, :, 1].astype(np.int16)
    return ImageStats(float(green.mean()), float(green.std()), float(np.abs(np.diff(green, axis=1)).mean()))


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
    """What 16-bit, 32-bit and float grayscale is multiplied with, by the range its format uses."""
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
    """Resize the short side and keep the center, computing only the kept pixels.

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
