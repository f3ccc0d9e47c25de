"""Pictures of photos, decoded as the service decodes them, and the grid that holds them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import streamlit as st
from PIL import Image

from frontend.api_client import Photo, size_problem
from frontend.components.markdown import escape_markdown
from serve_app.errors import ServiceError
from serve_app.preprocessing.thumbnail import make_thumbnail

DISPLAY_PX, THUMBNAIL_PX = 640, 256
CACHE_BYTES = 100 * 2**20  # of all visitors; the least recently used pictures are dropped
QUALITY = 90
decoding = Lock()  # one image at a time: one of 50 megapixels may take 810 MiB (docs/hostile-input.md)


class Picture(NamedTuple):
    """A photo for the screen."""

    jpeg: bytes | None  # upright, RGB; None where there is no picture
    reason: str | None = None  # why there is none, in the API's words

    def open(self) -> Image.Image | None:
        """Return the decoded picture."""
        return Image.open(io.BytesIO(self.jpeg), formats=["JPEG"]) if self.jpeg else None

    @property
    def data_url(self) -> str | None:
        """The picture as a ``data:`` URL, which ``st.dataframe`` shows."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}" if self.jpeg else None


def make_picture(photo: Photo, limits: Mapping[str, Any], side_px: int = DISPLAY_PX) -> Picture:
    """Return a photo for the screen, ``side_px`` a side at most, or why the page shows none; raise nothing.

    ``limits`` are those of ``GET /v1/models``. The page decodes what the API classifies, and refuses what it refuses.
    """
    if problem := size_problem(photo, limits):
        return Picture(None, problem["detail"])
    try:
        return _decode(photo, limits["max_pixels"], side_px)
    except MemoryError:  # not kept: it may fit later
        return Picture(None, "the page has too little memory for it now")


def show_picture(picture: Picture, caption: str | None = None, width: Any = "stretch", alt: str = "") -> None:
    """Show a picture with a caption in Markdown, or a placeholder with the reason why there is none.

    ``alt`` is plain text for screen readers; leave it out where the text beside the picture says the same.
    """
    if picture.jpeg:
        st.image(picture.jpeg, caption, width, alt=alt)
        return
    with st.container(border=True, width=width):
        st.caption(f":material/hide_image: No picture: {escape_markdown(picture.reason)}")
        if caption:
            st.caption(caption)


def grid(rows: Sequence[Any], columns: int) -> Iterator[tuple[Any, Any]]:
    """Yield a Streamlit column with each row, line by line."""
    for first in range(0, len(rows), columns):
        yield from zip(st.columns(columns), rows[first : first + columns], strict=False)


@st.cache_data(max_size=CACHE_BYTES, show_spinner=False, hash_funcs={Photo: lambda photo: photo.key})
def _decode(photo: Photo, max_pixels: int, side_px: int) -> Picture:
    try:
        with decoding:
            picture = make_thumbnail(photo.data, max_pixels, side_px)
    except ServiceError as error:
        return Picture(None, str(error))
    except MemoryError:
        raise
    except Exception:  # a broken file can raise almost anything in Pillow; the result is shown without a picture
        return Picture(None, "the page cannot decode it")
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=QUALITY, subsampling=0)
    return Picture(encoded.getvalue())
