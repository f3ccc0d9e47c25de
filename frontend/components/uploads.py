"""Uploaded files -> photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import streamlit as st

from frontend.api_client import Photo
from frontend.zipped_photos import unzip
from serve_app.preprocessing.formats import SUFFIXES

ACCEPTED = sorted(suffix.removeprefix(".") for suffix in SUFFIXES)  # of file names in a folder


def max_upload_mb(limits: Mapping[str, Any]) -> int:
    """Return the largest upload for a widget, which takes whole megabytes; ``api_client.size_problem`` is exact."""
    return int(-(-limits["max_image_bytes"] // 2**20))


def read_photo(file: Any) -> list[Photo]:
    """Return the one photo in an uploaded file."""
    return [Photo(file.name, file.getvalue())]


def read_zip(file: Any) -> list[Photo]:
    """Return the photos in an uploaded zip; raise ZipError where it cannot be read or has too many."""
    return unzip(file.getvalue(), ACCEPTED)


def read_once(store: str, files: Iterable[tuple[Any, Callable[[Any], list[Photo]]]]) -> list[Photo]:
    """Return the photos in uploaded files, each given with the function that reads it; read only new files.

    Streamlit reruns the script at every click. Reading and hashing a folder again at every click takes too long, so the
    session keeps the photos under ``store``.
    """
    known: dict[str, list[Photo]] = st.session_state.get(store, {})
    photos = {file.file_id: known.get(file.file_id) or read(file) for file, read in files}
    st.session_state[store] = photos
    return [photo for group in photos.values() for photo in group]
