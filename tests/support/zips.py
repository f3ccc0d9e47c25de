"""Zips for job tests: two photos and any hostile entry."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable

from tests.support.photos import make_photo

AddEntry = Callable[[zipfile.ZipFile], None]
ZIP_HEADER = {"content-type": "application/zip"}


def make_zip(*entries: AddEntry) -> bytes:
    """Return a zip of two photos and further entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for n in range(2):
            archive.writestr(zipfile.ZipInfo(f"a/{n}.jpg"), make_photo(n, 64, 48))
        for add in entries:
            add(archive)
    return buffer.getvalue()


def entry(
    name: str, mode: int = 0o644 | stat.S_IFREG, flags: int = 0, data: bytes = b"x", compression: int = 0
) -> AddEntry:
    """Return a function that adds an entry.

    zipfile cannot write every flag and compression method, so they are patched into the directory afterwards.
    """

    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr, info.create_system = mode << 16, 3
        archive.writestr(info, data, zipfile.ZIP_DEFLATED if len(data) > 100 else zipfile.ZIP_STORED)
        info.flag_bits |= flags
        info.compress_type = compression or info.compress_type

    return add
