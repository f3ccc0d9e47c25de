"""Stage 2/3 · encoded bytes -> uint8 pixels of the model's crop."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

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
        width, height = image.size
        if width * height > max_pixels:
            raise ImageTooLargeError(
                f"the header declares {width} x {height} = {width * height / 1e6:.1f} megapixels; "
                f"the limit is {max_pixels / 1e6:.1f}"
            )
        try:
            orientation = _orientation(image)
            info = ImageInfo(format=str(image.format).lower(), width=width, height=height, orientation=orientation)
            rgb = to_rgb(image)
            crop = _resize_and_crop(rgb, transform, orientation)
        except (OSError, ValueError, SyntaxError, ArithmeticError, LookupError, EOFError, TypeError) as error:
            # What Pillow's decoders raise on broken data; none of these is ours.
            raise InvalidImageError(f"the {image.format} data is truncated or corrupt ({error})") from error
    return PreprocessedImage(np.asarray(crop), info)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB: transparency over white, 16-bit and float to 8-bit.

    Raises:
        OSError: The file's data is broken (decoding happens here).
    """
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _depth_to_8_bit(image).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        # Premultiplied modes only convert to their straight twin first.
        straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
        rgba = (image.convert(straight) if straight else image).convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _open(encoded: bytes, max_pixels: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded), formats=tuple(FORMATS))
    except UnidentifiedImageError as error:
        for name, beginnings in FORMATS.items():
            if encoded.startswith(beginnings):
                raise InvalidImageError(f"begins like {name}, but its header is truncated or corrupt") from error
        raise UnsupportedImageError(
            f"not a JPEG, PNG, WebP, GIF, BMP or TIFF image (the {len(encoded)} bytes start with {encoded[:8]!r})"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"the header declares over {max_pixels / 1e6:.0f} megapixels, the limit") from error
    except (OSError, ValueError, SyntaxError, ArithmeticError, LookupError, EOFError, TypeError) as error:
        raise InvalidImageError(f"the image's header is truncated or corrupt ({error})") from error


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        return 1  # broken metadata around a good picture must not cost the answer
    return value if value in UPRIGHT else 1


def _depth_to_8_bit(image: Image.Image) -> Image.Image:
    """Map 16-bit, 32-bit and float greyscale to 8-bit by the range its format uses."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values)
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
    else:
        scale = 255 / 65535 if image.mode.startswith("I;16") or values.max(initial=0.0) > 255 else 1.0
    return Image.fromarray(np.clip(np.round(values * scale), 0, 255).astype(np.uint8))


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
