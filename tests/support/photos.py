"""Generated photos: no test needs image files from elsewhere."""

from __future__ import annotations

import io

import numpy as np
import pillow_heif
from PIL import Image

# EXIF orientation -> how to store an upright picture so that the tag turns it back.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def make_picture(width: int = 320, height: int = 240, seed: int = 0) -> Image.Image:
    """Draw an RGB picture that differs in every direction: color gradients, a disc's edge, and 8 px texture."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x / width, y / height, (x + 2 * y) % 64 / 64], -1)
    base += 0.5 * (((x - width * 0.3) ** 2 + (y - height * 0.6) ** 2) < (min(width, height) * 0.2) ** 2)[..., None]
    blocks = random.random((-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return Image.fromarray((np.clip(0.6 * base + 0.4 * blocks, 0, 1) * 255).astype(np.uint8))


pillow_heif.register_heif_opener()


def encode(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """Encode a picture; ``kind`` and ``options`` are those of ``Image.save``, and HEIF is there as well."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def encode_heic_16(pixels: np.ndarray, **options: object) -> bytes:
    """Encode (height, width, 3 or 4) samples of 16 bits as a HEIC of 10 bits."""
    mode = "RGB;16" if pixels.shape[2] == 3 else "RGBA;16"
    buffer = io.BytesIO()
    pillow_heif.from_bytes(mode, pixels.shape[1::-1], pixels.tobytes()).save(buffer, **options)
    return buffer.getvalue()


def encode_heic_grid(picture: Image.Image, tile_px: int = 64) -> bytes:
    """Encode a picture as a HEIC of tiles, as phones do."""
    pillow_heif.options.GRID_TILE_SIZE = tile_px
    try:
        return encode(picture, "HEIF")
    finally:
        pillow_heif.options.GRID_TILE_SIZE = 0


def make_photo(seed: int = 0, width: int = 320, height: int = 240) -> bytes:
    """Return such a picture as a JPEG; the same seed gives the same bytes."""
    return encode(make_picture(width, height, seed))
