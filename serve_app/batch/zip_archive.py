"""Check an uploaded zip by its directory, before any entry is read. sources.py reads the entries."""

from __future__ import annotations

import re
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from serve_app.config import JobsConfig
from serve_app.errors import ArchiveError, MalformedRequestError, TooLargeError

MAX_RATIO = 100  # unpacked bytes per byte of the zip; photos have about 1
DIRECTORY_BYTES_PER_ENTRY = 200  # zipfile keeps the directory in memory
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")


def check_zip(path: Path, limits: JobsConfig) -> None:
    """Refuse a zip that is broken, hostile or over a limit.

    The limits bound the memory of this check: the size of the directory is compared before the directory is read.
    A directory that lies about sizes gains nothing: a worker stops to read an entry at the largest image allowed.

    Raises:
        MalformedRequestError: Not a complete zip, or a zip without files (400).
        TooLargeError: Too many entries, or too many bytes once unpacked, as in a zip bomb (413).
        ArchiveError: A name outside the zip or used twice, a link, a device, an encrypted entry, or a compression
            other than deflate (422).
    """
    size = path.stat().st_size
    try:
        directory_bytes = _directory_bytes(path)
        if directory_bytes > DIRECTORY_BYTES_PER_ENTRY * limits.max_zip_entries:
            raise TooLargeError(
                f"the zip's directory has {directory_bytes / 2**20:.1f} MB, too much for "
                f"{limits.max_zip_entries} entries (limit: `jobs.max_zip_entries`)"
            )
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, struct.error) as error:
        raise MalformedRequestError(f"the body is not a complete zip file ({error})") from None
    if len(entries) > limits.max_zip_entries:
        raise TooLargeError(f"the zip has {len(entries)} entries; the limit is {limits.max_zip_entries}")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > limits.max_unpacked_bytes:
        raise TooLargeError(
            f"the zip has {unpacked:,} bytes once unpacked; "
            f"the limit is {limits.max_unpacked_bytes:,} ({limits.max_unpacked_bytes / 2**20:.0f} MB)"
        )
    if unpacked > MAX_RATIO * size:
        raise TooLargeError(f"the zip grows {unpacked / size:.0f} times when unpacked; the limit is {MAX_RATIO} times")
    seen: set[str] = set()
    for entry in entries:
        _check_entry(entry)
        if entry.filename in seen:
            raise ArchiveError(f"{_quote(entry)} is in the zip twice; give every file its own name")
        seen.add(entry.filename)
    if all(entry.is_dir() for entry in entries):
        raise MalformedRequestError("the zip holds no files")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    if OUTSIDE.search(entry.orig_filename) or "\0" in entry.orig_filename:
        raise ArchiveError(f"{_quote(entry)}: the name leads out of the zip; use relative names such as a/b.jpg")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"{_quote(entry)} is a link or a device; zip the files themselves")
    if entry.flag_bits & 0x1:
        raise ArchiveError(f"{_quote(entry)} is encrypted; send the zip without a password")
    if entry.compress_type not in COMPRESSIONS:
        raise ArchiveError(f"{_quote(entry)} has compression method {entry.compress_type}; use stored or deflated")


def _quote(entry: zipfile.ZipInfo) -> str:
    return f"{entry.orig_filename!r:.100}"


def _directory_bytes(path: Path) -> int:
    """Return the size of the zip's directory, which decides how much memory reading the directory takes."""
    # The private function that ZipFile itself calls: a parser of our own could find another size than ZipFile does.
    find_end: Callable[[BinaryIO], list[Any] | None] = zipfile._EndRecData  # type: ignore[attr-defined] # private
    with path.open("rb") as file:
        end = find_end(file)
    if end is None:
        raise zipfile.BadZipFile("no directory at its end")
    return int(end[5])
