"""Check a zip by its directory, before any entry is read. sources.py reads the entries."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path

from serve_app.config import JobsConfig
from serve_app.errors import ArchiveError, MalformedRequestError, TooLargeError
from serve_app.settings import MiB
from serve_app.zip_entries import (
    DIRECTORY_BYTES_PER_ENTRY,
    ZipNameError,
    directory_bytes,
    list_files,
    open_zip,
    quote,
    unreadable_reason,
)

MAX_RATIO = 100  # bytes of a large entry per byte of its compressed form; photos have about 1
# Smaller entries may have any ratio: a white page of 300 dpi is a BMP of 26 MB that deflates to 1/1000.
MIN_RATIO_BYTES = 32 * MiB
LOCAL_HEADER_BYTES = 30  # of an entry, without its name


def check_zip(path: Path, limits: JobsConfig) -> int:
    """Refuse a zip that is broken, hostile or over a limit; return its number of files.

    The limits bound the memory of this check: the size of the directory is compared before the directory is read.
    A directory that lies about sizes gains nothing: a worker stops to read an entry at the largest image allowed.

    Raises:
        MalformedRequestError: Not a complete zip, or a zip without visible files (400).
        TooLargeError: Too many bytes or entries, or too many bytes once unpacked, as in a zip bomb (413).
        ArchiveError: A name outside the zip or used twice, a link, a device, an encrypted entry, a compression
            other than deflate, or an entry inside another one (422).
    """
    try:
        if (size := path.stat().st_size) > limits.max_zip_bytes:
            raise TooLargeError(f"the zip has {size:,} bytes; the limit is {limits.max_zip_bytes:,}")
        with path.open("rb") as file:
            directory = directory_bytes(file)
        if directory > DIRECTORY_BYTES_PER_ENTRY * limits.max_zip_entries:
            raise TooLargeError(
                f"the zip's directory has {directory / 2**20:.1f} MB, too much for "
                f"{limits.max_zip_entries} entries (limit: `jobs.max_zip_entries`)"
            )
        with open_zip(path) as archive:
            _check_sizes(archive.infolist(), limits)
            files = list_files(archive)
            _check_overlaps(archive.infolist(), archive.start_dir)
    except OSError as error:
        raise MalformedRequestError(f"not a complete zip file ({error.strerror})") from None
    except zipfile.BadZipFile as error:
        raise MalformedRequestError(f"not a complete zip file ({error})") from None
    except ZipNameError as error:
        raise ArchiveError(str(error)) from None
    if not files:
        raise MalformedRequestError("the zip holds no files (hidden files do not count)")
    for name, entry in files:
        if reason := unreadable_reason(entry):
            raise ArchiveError(f"{quote(name)} {reason}")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ArchiveError(f"{quote(name)} is a link or a device; zip the files themselves")
    return len(files)


def _check_sizes(entries: Sequence[zipfile.ZipInfo], limits: JobsConfig) -> None:
    if len(entries) > limits.max_zip_entries:
        raise TooLargeError(f"the zip has {len(entries)} entries; the limit is {limits.max_zip_entries}")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > limits.max_unpacked_bytes:
        raise TooLargeError(
            f"the zip has {unpacked:,} bytes once unpacked; "
            f"the limit is {limits.max_unpacked_bytes:,} ({limits.max_unpacked_bytes / 2**20:.0f} MB)"
        )
    for entry in entries:
        if entry.file_size > max(MIN_RATIO_BYTES, MAX_RATIO * entry.compress_size):
            raise TooLargeError(
                f"{quote(entry.filename)} grows {entry.file_size / max(1, entry.compress_size):.0f} times when "
                f"unpacked; the limit is {MAX_RATIO} times for files over {MIN_RATIO_BYTES // MiB} MB"
            )


def _check_overlaps(entries: Sequence[zipfile.ZipInfo], directory: int) -> None:
    """Refuse entries that share bytes: a zip bomb compresses its bytes once and lists them many times."""
    end = directory
    for entry in sorted(entries, key=lambda each: each.header_offset, reverse=True):
        if entry.header_offset < 0 or entry.header_offset + LOCAL_HEADER_BYTES + entry.compress_size > end:
            raise ArchiveError(f"{quote(entry.filename)} overlaps another entry of the zip; make the zip again")
        end = entry.header_offset
