"""Small pictures of photos, and the grid that holds them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import streamlit as st

from frontend.api_client import Photo
from frontend.components.heat_map import open_upright

THUMBNAIL_PX = 256


@st.cache_data(max_entries=2000, show_spinner=False, hash_funcs={Photo: lambda photo: photo.key})
def thumbnail(photo: Photo, max_pixels: int) -> bytes | None:
    """Return a JPEG of at most THUMBNAIL_PX a side, or None where Pillow cannot decode the photo."""
    picture = open_upright(photo.data, max_pixels, THUMBNAIL_PX)
    if picture is None:
        return None
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=80)
    return encoded.getvalue()


def data_url(jpeg: bytes | None) -> str | None:
    """Return a JPEG as a ``data:`` URL, which ``st.dataframe`` shows as a picture."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else None


def grid(rows: Sequence[Any], columns: int) -> Iterator[tuple[Any, Any]]:
    """Yield a Streamlit column with each row, line by line."""
    for first in range(0, len(rows), columns):
        yield from zip(st.columns(columns), rows[first : first + columns], strict=False)
