"""Pictures that the page draws."""

from __future__ import annotations

import numpy as np
from PIL import Image

from frontend.components.heat_map import overlay


def test_overlay_covers_the_models_crop() -> None:
    """Strong evidence is bright, the border outside the crop is faded, and opacity 0 leaves the crop unchanged."""
    photo = Image.new("RGB", (200, 100), (100, 100, 100))
    values = [[0.0, 0.0], [0.0, 5.0]]
    drawn = np.asarray(overlay(photo, values, 0.8, 1.0)).astype(int)
    assert drawn[75, 125].sum() > drawn[25, 75].sum() + 200
    assert (drawn[50, 10] > 100).all()
    unchanged = np.asarray(overlay(photo, values, 1.0, 0.0))
    assert (unchanged[:, 50:150] == 100).all()
