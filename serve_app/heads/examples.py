"""One taught photo, as the fit needs it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A photo that a user gave a class. The photo itself is elsewhere, and only if it was to be kept."""

    id: str  # 32 hexadecimal digits
    class_name: str  # as ``clean_class_name`` returns it
    embedding: np.ndarray  # float32, (512,): the backbone's pooled features of the crop
    mirrored: np.ndarray  # float32, (512,): the same of the crop mirrored left to right
    photo_sha256: str  # of the uploaded file, 64 hexadecimal digits
    added: str  # ISO 8601, UTC
    kept_photo: bool = False  # whether the store holds the uploaded file


def new_example_id() -> str:
    """Return an id that no other example has."""
    return uuid.uuid4().hex
