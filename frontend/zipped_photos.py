"""A zip -> the photos in it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import PurePosixPath

from frontend.api_client import Photo
from serve_app.zip_entries import (
    DIRECTORY_BYTES_PER_ENTRY,
    ZipNameError,
    directory_bytes,
    is_visible,
    list_files,
    open_zip,
    read_entry,
)

# Of a zip. The page holds an upload of at most 200 MB (frontend/.streamlit/config.toml) and its photos in memory.
MAX_ENTRIES, MAX_UNPACKED_BYTES = 20_000, 256 << 20


class ZipError(Exception):
    """The zip cannot be read or has too many photos; the message says what to do."""


def unzip(data: bytes, formats: Sequence[str]) -> list[Photo]:
    """Return the photos in a zip that have one of the ``formats`` in /v1/models; write nothing to disk.

    A photo's name is its clean path in the zip.

    Raises:
        ZipError: The file is not a zip, a photo in it cannot be read, or it has none, or too many.
    """
    file = io.BytesIO(data)
    too_large = ZipError(f"The zip has more than {MAX_ENTRIES} photos or {MAX_UNPACKED_BYTES >> 20} MB; split it.")
    try:
        if directory_bytes(file) > DIRECTORY_BYTES_PER_ENTRY * MAX_ENTRIES:
            raise too_large
        with open_zip(file) as archive:
            entries = [entry for entry in list_files(archive) if is_photo(entry.path, formats)]
            if len(entries) > MAX_ENTRIES or sum(entry.info.file_size for entry in entries) > MAX_UNPACKED_BYTES:
                raise too_large
            if not entries:
                raise ZipError(f"There are no photos in this zip. Their names must end in {', '.join(formats)}.")
            return [Photo(path, _read(archive, path, info)) for path, info in entries]
    except (zipfile.BadZipFile, ZipNameError) as error:
        raise ZipError(f"This zip cannot be read: {error}.") from error


def _read(archive: zipfile.ZipFile, path: str, info: zipfile.ZipInfo) -> bytes:
    try:
        return read_entry(archive, info, info.file_size)
    except OSError as error:
        raise ZipError(f"{path} in the zip cannot be read: {error}.") from error


def is_photo(name: str, formats: Sequence[str]) -> bool:
    """Return whether a path names a photo in one of these formats that no program has hidden."""
    path = PurePosixPath(name)
    return all(map(is_visible, path.parts)) and path.suffix.lower().lstrip(".") in {*formats, "jpg", "tif"}
