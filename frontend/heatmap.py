"""A class activation map laid over its photo."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

SHOWN_PX = 640
MAX_PIXELS = 100_000_000
# Dark violet to yellow by way of red: readable in grayscale too.
STOPS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], float)


def open_upright(data: bytes, shown_px: int = SHOWN_PX) -> Image.Image | None:
    """Decode a photo for the screen: upright, RGB, at most ``shown_px`` on its long side.

    Returns:
        None where Pillow cannot read it; the API's answer says why.
    """
    try:
        file = Image.open(io.BytesIO(data))
        if file.width * file.height > MAX_PIXELS:
            return None
        file.draft("RGB", (shown_px, shown_px))
        image = ImageOps.exif_transpose(file)
        image.thumbnail((shown_px, shown_px))
        if "transparency" in image.info or "A" in image.mode:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")
    except Exception:
        return None  # any broken file: the picture is missing, the page is not


def overlay(photo: Image.Image, values: list[list[float]], crop_share: float, opacity: float) -> Image.Image:
    """Lay a map over the part of the photo that the model saw.

    Args:
        photo: RGB, upright.
        values: Evidence per grid cell, in logits; only positive evidence is shown.
        crop_share: Side of the model's center crop as a share of the photo's short side.
        opacity: Of the strongest evidence, 0-1.

    Returns:
        RGB, the photo's size; what the model did not see is faded.
    """
    side = max(1, round(min(photo.size) * crop_share))
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    evidence = np.clip(np.asarray(values, np.float32), 0, None)
    evidence /= max(float(evidence.max()), 1e-6)
    smooth = Image.fromarray(evidence).resize((side, side), Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(smooth), 0, 1)
    places = np.linspace(0, 1, len(STOPS))
    colors = np.stack([np.interp(strength, places, STOPS[:, c]) for c in range(3)], axis=-1)
    pixels = np.asarray(photo, np.float32)
    seen = pixels[top : top + side, left : left + side]
    weight = (opacity * (0.25 + 0.75 * strength))[..., None]
    faded = pixels * 0.55 + 255 * 0.45
    faded[top : top + side, left : left + side] = seen * (1 - weight) + colors * weight
    return Image.fromarray(faded.round().astype(np.uint8))
