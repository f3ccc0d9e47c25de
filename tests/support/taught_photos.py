"""Photos of classes that any network tells apart, and forms and zips of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import numpy as np
from PIL import Image

from tests.support.photos import encode, make_picture

COLORS = {"red": (230, 40, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "gray": (128, 128, 128)}
COLOR_SHARE = 0.75  # of a picture that is its class's color
Photos = Mapping[str, list[bytes]]


def photo_of(class_name: str, seed: int, width: int = 160, height: int = 120) -> bytes:
    """Return a JPEG that shows the class's color over a picture of its own."""
    picture = np.asarray(make_picture(width, height, seed), np.float32)
    colored = COLOR_SHARE * np.array(COLORS[class_name]) + (1 - COLOR_SHARE) * picture
    return encode(Image.fromarray(colored.astype(np.uint8)))


def photos_of(*class_names: str, count: int = 8, first: int = 0) -> dict[str, list[bytes]]:
    """Return ``count`` photos of each class."""
    return {name: [photo_of(name, first + seed) for seed in range(count)] for name in class_names}


def as_form(photos: Photos) -> list[tuple[str, tuple[str, bytes]]]:
    """Return photos as the files of a form, for httpx."""
    return [(name, (f"{n}.jpg", photo)) for name, each in photos.items() for n, photo in enumerate(each)]


def as_zip(photos: Photos, folder: str = "") -> bytes:
    """Return photos as a zip with a folder per class."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, each in photos.items():
            for n, photo in enumerate(each):
                archive.writestr(f"{folder}{name}/{n}.jpg", photo)
    return buffer.getvalue()
