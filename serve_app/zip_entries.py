"""Names and bytes of the files in a zip, for batch jobs and for the page's Evaluate view.

An entry's name is stored as bytes; tools differ in encoding, separators and prefixes. ``list_files`` gives each file
one clean path; the entry itself, not its name, opens the file. Nothing is unpacked to disk. The page's container has
this module, so it imports only the standard library.
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

DIRECTORY_BYTES_PER_ENTRY = 200  # with names of 100 bytes; for a bound before the directory is read
MACOS_FOLDER = "__MACOSX"  # macOS adds a shadow of each file to a zip there
# zipfile bounds the memory of one read only for these two.
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
UTF8_FLAG, ENCRYPTION_FLAGS, PATCH_FLAG = 0x800, 0x2041, 0x20  # APPNOTE.TXT 4.4.4
UNICODE_PATH = 0x7075  # extra field of Info-ZIP, APPNOTE.TXT 4.6.9
WINDOWS_SYSTEMS = (0, 6, 10, 11, 14)  # "version made by", APPNOTE.TXT 4.4.2.2: file names there have no backslash
DOS_FOLDER = 0x10  # attribute of a folder
DRIVE = re.compile("[A-Za-z]:")
WINDOWS_ROOT = re.compile(r"[A-Za-z]:\\|\\")
# In the double-byte code pages of Windows (932, 936, 949, 950), a backslash can be the second byte of a character.
SEPARATOR, WINDOWS_SEPARATOR, DOUBLE_BYTE_SEPARATOR = map(re.compile, ("/", r"[/\\]", r"/|(?<![^\x00-\x7f])\\"))
# What zipfile raises for a broken directory or entry, besides BadZipFile and OSError.
BROKEN = (ValueError, RuntimeError, EOFError, OverflowError, struct.error, zlib.error)


class ZipNameError(Exception):
    """A name leads out of the zip, or two files have the same path."""


class ZipFileEntry(NamedTuple):
    """A file in a zip."""

    path: str  # relative, with "/" between its parts and without "." and ".."
    info: zipfile.ZipInfo  # opens the file; its own name may differ


def open_zip(file: Path | BinaryIO) -> zipfile.ZipFile:
    """Open a zip for reading.

    Raises:
        zipfile.BadZipFile: Not a complete zip, or one of an unknown version.
        OSError: The file cannot be read.
    """
    try:
        return zipfile.ZipFile(file)
    except UnicodeDecodeError:
        raise zipfile.BadZipFile("a name that is marked as UTF-8 is not UTF-8") from None
    except BROKEN as error:
        raise zipfile.BadZipFile(str(error)) from error


def directory_bytes(file: BinaryIO) -> int:
    """Return the size of a zip's directory, which decides how much memory ``open_zip`` takes; raise its errors."""
    # The private function that ZipFile itself calls: a parser of our own could find another size than ZipFile does.
    find_end: Callable[[BinaryIO], list[Any] | None] = zipfile._EndRecData  # type: ignore[attr-defined] # private
    try:
        end = find_end(file)
    except BROKEN as error:
        raise zipfile.BadZipFile(str(error)) from error
    if end is None:
        raise zipfile.BadZipFile("no directory at its end")
    return int(end[5])


def list_files(archive: zipfile.ZipFile) -> list[ZipFileEntry]:
    """Return the visible files of a zip in the order of its directory: neither folders, hidden nor shadow files.

    A name without an encoding is UTF-8 if it is valid UTF-8, and else code page 437, as APPNOTE.TXT D.1 says.
    Backslashes separate folders where the entry is from Windows, or where no name of the zip has a slash. A leading
    slash or drive is left out. In a name of unknown encoding, a backslash after a byte above 127 can be half of a
    character and separates nothing.

    Raises:
        ZipNameError: A name is empty, has a part ``..`` or a NUL character, or two files have the same path.
    """
    decoded = [(info, *_decode_name(info)) for info in archive.infolist()]
    has_slashes = any("/" in name for _, name, _ in decoded)
    files: dict[str, ZipFileEntry] = {}
    for info, name, is_guess in decoded:
        if "\0" in name or (".." in name and ".." in WINDOWS_SEPARATOR.split(name)):
            raise ZipNameError(f"{quote(name)}: the name leads out of the zip; use relative names such as a/b.jpg")
        if _is_folder(info, name):
            continue
        from_windows = info.create_system in WINDOWS_SYSTEMS or not has_slashes or WINDOWS_ROOT.match(name)
        windows_separator = DOUBLE_BYTE_SEPARATOR if is_guess else WINDOWS_SEPARATOR
        parts = _clean(name, windows_separator if from_windows else SEPARATOR)
        if not parts:
            raise ZipNameError(f"{quote(name)} names no file; use names such as a/b.jpg")
        if not all(map(is_visible, parts)):
            continue
        path = "/".join(parts)
        if path in files:
            raise ZipNameError(f"{quote(path)} is in the zip twice; give every file its own name")
        files[path] = ZipFileEntry(path, info)
    return list(files.values())


def is_visible(name: str) -> bool:
    """Return whether files and folders of this name are read: not hidden ones, nor macOS's shadow files."""
    return not name.startswith(".") and name != MACOS_FOLDER


def unreadable_reason(info: zipfile.ZipInfo) -> str | None:
    """Return why an entry cannot be read whatever its bytes are, or None."""
    if info.flag_bits & ENCRYPTION_FLAGS:
        return "is encrypted; send the zip without a password"
    if info.compress_type not in COMPRESSIONS or info.flag_bits & PATCH_FLAG:
        return f"has compression method {info.compress_type}; use stored or deflated"
    return None


def read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> bytes:
    """Read at most ``max_bytes + 1`` bytes of an entry, whatever size the directory declares.

    Raises:
        OSError: The entry is broken, encrypted, or in a compression other than deflate; or the file cannot be read.
    """
    if reason := unreadable_reason(info):
        raise OSError(f"the entry {reason}")
    try:
        with archive.open(info) as file:
            return file.read(max_bytes + 1)
    except (zipfile.BadZipFile, *BROKEN) as error:
        raise OSError(str(error) or "the entry is truncated") from error


def quote(name: str) -> str:
    """Return a name for an error message: escaped, and at most 100 characters."""
    return f"{name!r:.100}"


def _decode_name(info: zipfile.ZipInfo) -> tuple[str, bool]:
    """Return an entry's name, and whether its encoding is a guess."""
    if info.flag_bits & UTF8_FLAG or (info.orig_filename.isascii() and not info.extra):
        return info.orig_filename, False
    raw = info.orig_filename.encode("cp437")  # what zipfile decoded it with; maps every byte
    if (name := _unicode_path(info.extra, raw)) is not None:
        return name, False
    try:
        return raw.decode(), False
    except UnicodeDecodeError:
        return info.orig_filename, True


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the name in a Unicode path extra field, unless it belongs to another name: some tools rename only one."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and len(field) > 5 and field[:5] == struct.pack("<BL", 1, zlib.crc32(raw)):
            with suppress(UnicodeDecodeError):
                return field[5:].decode()
    return None


def _is_folder(info: zipfile.ZipInfo, name: str) -> bool:
    if name.endswith("/"):
        return True
    marked = info.external_attr & DOS_FOLDER or stat.S_ISDIR(info.external_attr >> 16)
    return info.file_size == 0 and (name.endswith("\\") or bool(marked))


def _clean(name: str, separator: re.Pattern[str]) -> list[str]:
    """Return the parts of a relative path."""
    parts = [part for part in separator.split(name) if part not in ("", ".")]
    return parts[1:] if len(parts) > 1 and DRIVE.fullmatch(parts[0]) else parts
