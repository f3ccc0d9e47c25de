"""A class activation map drawn over its photo."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

# Color map of the heat map: matplotlib's "inferno" at 0, 0.25, 0.5, 0.75 and 1. Its lightness rises steadily, so the
# map can be read in grayscale too.
COLOR_STOPS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], float)


def crop_fraction(model: dict[str, Any]) -> float:
    """Return the side of the model's center crop divided by the photo's short side; ``model`` is from the API."""
    return float(model["transform"]["crop_px"] / model["transform"]["resize_px"])


def overlay(photo: Image.Image, values: list[list[float]], fraction: float, opacity: float) -> Image.Image:
    """Draw a class activation map over the part of the photo that the model received; fade the rest.

    Args:
        photo: RGB, upright.
        values: Evidence per grid cell, in logits; negative evidence is not drawn.
        fraction: What ``crop_fraction`` returns.
        opacity: Opacity of the strongest evidence, 0-1.

    Source:
        Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016.
    """
    side = max(1, round(min(photo.size) * fraction))
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    evidence = np.clip(np.asarray(values, np.float32), 0, None)
    evidence /= max(float(evidence.max()), 1e-6)
    smooth = Image.fromarray(evidence).resize((side, side), Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(smooth), 0, 1)
    positions = np.linspace(0, 1, len(COLOR_STOPS))
    colors = np.stack([np.interp(strength, positions, COLOR_STOPS[:, c]) for c in range(3)], axis=-1)
    pixels = np.asarray(photo, np.float32)
    crop = pixels[top : top + side, left : left + side]
    weight = (opacity * (0.25 + 0.75 * strength))[..., None]
    faded = pixels * 0.55 + 255 * 0.45
    faded[top : top + side, left : left + side] = crop * (1 - weight) + colors * weight
    return Image.fromarray(faded.round().astype(np.uint8))
