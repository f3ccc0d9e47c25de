"""Pictures that the page draws."""

from __future__ import annotations

import numpy as np
from PIL import Image

from frontend.components.heat_map import open_upright, overlay
from tests.support.photos import encode, make_picture

MAX_PIXELS = 1_000_000


def test_overlay_covers_the_models_crop() -> None:
    """Strong evidence is bright, the border outside the crop is faded, and opacity 0 leaves the crop unchanged."""
    photo = Image.new("RGB", (200, 100), (100, 100, 100))
    values = [[0.0, 0.0], [0.0, 5.0]]
    drawn = np.asarray(overlay(photo, values, 0.8, 1.0)).astype(int)
    assert drawn[75, 125].sum() > drawn[25, 75].sum() + 200
    assert (drawn[50, 10] > 100).all()
    unchanged = np.asarray(overlay(photo, values, 1.0, 0.0))
    assert (unchanged[:, 50:150] == 100).all()


def test_pictures_are_upright_or_absent() -> None:
    """EXIF orientation is applied; a file that is no image, or has too many pixels, gives no picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(make_picture(300, 200), exif=exif)
    turned = open_upright(encoded, MAX_PIXELS)
    assert turned is not None
    assert turned.size == (200, 300)
    assert open_upright(b"text", MAX_PIXELS) is None
    assert open_upright(encoded, max_pixels=59_999) is None
