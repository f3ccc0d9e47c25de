"""A zip that a stranger sent: refused for what it says of itself, before anything in it is read."""

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

MAX_RATIO = 100  # of all files to the zip; photos have about 1
ENTRY_BYTES = 200  # of the directory per entry; it is in memory when it is read
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")


def check_zip(path: Path, limits: JobsConfig) -> int:
    """Check what a zip's directory says.

    Memory is bounded by the limits, whatever the file holds: its directory's size is checked before that is read.
    A worker that reads an entry stops at the largest image, so a directory that lies gains nothing.

    Returns:
        How many files it has.

    Raises:
        MalformedRequestError: It is no zip, or an empty one (400).
        TooLargeError: Too many entries, or too many bytes once unpacked: a zip bomb (413).
        ArchiveError: Entries that lead out of it, links, secrets, rare compression, names that come twice (422).
    """
    size = path.stat().st_size
    directory = _directory_bytes(path)
    if directory > ENTRY_BYTES * limits.max_zip_entries:
        raise TooLargeError(
            f"the zip's directory has {directory / 2**20:.1f} MB: more than {limits.max_zip_entries} "
            "entries, the limit, need"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, struct.error) as error:
        raise MalformedRequestError(f"the body is no whole zip file ({error})") from None
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
        _check(entry)
        if entry.filename in seen:
            raise ArchiveError(f"{_shown(entry)} is twice in the zip")
        seen.add(entry.filename)
    files = sum(not entry.is_dir() for entry in entries)
    if files == 0:
        raise MalformedRequestError("the zip holds no files")
    return files


def _check(entry: zipfile.ZipInfo) -> None:
    """Refuse an entry that no honest zip of photos has."""
    if OUTSIDE.search(entry.orig_filename) or "\0" in entry.orig_filename:
        raise ArchiveError(f"{_shown(entry)}: the name leads out of the zip; use names below its top, such as a/b.jpg")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"{_shown(entry)} is a link or a device; zip the files themselves")
    if entry.flag_bits & 0x1:
        raise ArchiveError(f"{_shown(entry)} is encrypted; send it without a password")
    if entry.compress_type not in METHODS:
        raise ArchiveError(f"{_shown(entry)} has compression method {entry.compress_type}; use stored or deflated")


def _shown(entry: zipfile.ZipInfo) -> str:
    return f"{entry.orig_filename!r:.100}"


def _directory_bytes(path: Path) -> int:
    """How long the directory is, which decides how much memory reading it takes."""
    # The function that ZipFile itself asks: a second reading of the format could come to another number.
    find: Callable[[BinaryIO], list[Any] | None] = zipfile._EndRecData  # type: ignore[attr-defined] # private
    with path.open("rb") as file:
        try:
            found = find(file)
        except (OSError, struct.error, zipfile.BadZipFile) as error:
            raise MalformedRequestError(f"the body is no whole zip file ({error})") from None
    if found is None:
        raise MalformedRequestError("the body is no whole zip file: it has no directory at its end")
    return int(found[5])
