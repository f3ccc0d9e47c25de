"""Names in zips: every tool's way of writing them gives the same clean path, and the entry's own bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

import pytest

from serve_app.zip_entries import ZipNameError, list_files, open_zip, read_entry
from tests.support.raw_zips import (
    DESCRIPTOR,
    DOS,
    ENCRYPTED,
    MACOS,
    NTFS,
    UNIX,
    UTF8,
    RawEntry,
    raw_zip,
    unicode_path,
)


def contents(data: bytes) -> dict[str, bytes]:
    """Return the bytes of every file by its path."""
    with open_zip(io.BytesIO(data)) as archive:
        return {path: read_entry(archive, info, 1000) for path, info in list_files(archive)}


def paths(*entries: RawEntry) -> list[str]:
    return list(contents(raw_zip(entries)))


CP932 = "表.jpg".encode("cp932")  # its second byte is a backslash


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"./a.jpg", "a.jpg"),
        (b"././b/./a.jpg", "b/a.jpg"),
        (b"b//a.jpg", "b/a.jpg"),
        (b"/b/a.jpg", "b/a.jpg"),
        (b"//server/b/a.jpg", "server/b/a.jpg"),
        (b"C:/b/a.jpg", "b/a.jpg"),
        (b"C:\\b\\a.jpg", "b/a.jpg"),
        (b"\\\\server\\b\\a.jpg", "server/b/a.jpg"),
        (b".\\b\\.\\a.jpg", "b/a.jpg"),
        (b"b\\a.jpg", "b/a.jpg"),
        (b"a: day.jpg", "a: day.jpg"),
        (b"C:a.jpg", "C:a.jpg"),
        (b"a..b/c...jpg", "a..b/c...jpg"),
        (b"Icon\r", "Icon\r"),
        (b" a .jpg ", " a .jpg "),
        (b"Thumbs.db", "Thumbs.db"),
        ("café/名前.jpg".encode(), "café/名前.jpg"),
        ("cafe\u0301.jpg".encode(), "cafe\u0301.jpg"),
        ("😀.jpg".encode(), "😀.jpg"),
        ("café.jpg".encode("cp437"), "café.jpg"),
        (b"\xff\xfe.jpg", "\u00a0\u25a0.jpg"),
        (CP932, CP932.decode("cp437")),
    ],
)
def test_a_name_becomes_a_clean_path(raw: bytes, path: str) -> None:
    """Alone in a zip from Windows or MS-DOS, which has no flag for UTF-8."""
    assert paths(RawEntry(raw)) == [path]


@pytest.mark.parametrize("system", [DOS, UNIX, NTFS, MACOS])
@pytest.mark.parametrize(
    "name", ["__MACOSX/._a.jpg", "a/__MACOSX/b.jpg", ".DS_Store", "./.hidden/a.jpg", "a/.git/b.jpg", "._a.jpg"]
)
def test_hidden_and_shadow_files_are_left_out(name: str, system: int) -> None:
    """With slashes and with backslashes."""
    windows = name.replace("/", "\\").encode()
    assert paths(RawEntry(name.encode(), system=system), RawEntry(b"b/c.jpg")) == ["b/c.jpg"]
    assert paths(RawEntry(windows, system=system), RawEntry(b"c.jpg")) == ["c.jpg"]


@pytest.mark.parametrize(
    "folder",
    [
        RawEntry(b"./", b""),
        RawEntry(b"/", b""),
        RawEntry(b"b/", b"", UNIX),
        RawEntry(b"b\\", b"", attributes=0x10),
        RawEntry(b"b\\", b""),
        RawEntry(b"b", b"", attributes=0x10),
        RawEntry(b"b", b"", UNIX, attributes=0o40755 << 16),
    ],
)
def test_folders_are_no_files(folder: RawEntry) -> None:
    """However a tool marks them; an empty file is a file."""
    assert paths(folder, RawEntry(b"b\\a.jpg"), RawEntry(b"empty.jpg", b"")) == ["b/a.jpg", "empty.jpg"]


def test_backslashes_separate_folders_only_in_zips_from_windows() -> None:
    """A file name on Unix may contain one; a zip without slashes is taken for one from Windows."""
    assert paths(RawEntry(b"b\\a.jpg", system=UNIX), RawEntry(b"c/a.jpg", system=UNIX)) == ["b\\a.jpg", "c/a.jpg"]
    assert paths(RawEntry(b"b\\a.jpg", system=UNIX)) == ["b/a.jpg"]
    assert paths(RawEntry(b"b\\c/a.jpg", system=NTFS)) == ["b/c/a.jpg"]


def test_encodings_of_a_name() -> None:
    """The flag, then a Unicode path that belongs to this name, then UTF-8 where it is valid, then code page 437."""
    name = "é名.jpg"
    raw = b"e?.jpg"
    assert paths(RawEntry(name.encode(), flags=UTF8)) == [name]
    assert paths(RawEntry(raw, extra=unicode_path(raw, name.encode()))) == [name]
    padding = b"\x99\x99\2\0ab"
    assert paths(RawEntry(raw, extra=padding + unicode_path(raw, name.encode()))) == [name]
    for useless in (
        unicode_path(raw, name.encode(), crc_of=b"renamed.jpg"),
        unicode_path(raw, b"\xff.jpg"),
        unicode_path(raw, b""),
        b"up\3\0\1ab",
        b"up",
    ):
        assert paths(RawEntry(raw, extra=useless)) == ["e?.jpg"]
    assert paths(RawEntry(b"..", extra=unicode_path(b"..", b"a\\b.jpg"))) == ["a/b.jpg"]


def test_files_with_equal_stored_names_keep_their_bytes() -> None:
    """Two names that a tool stored as question marks differ in their Unicode paths; each path has its own bytes."""
    entries = [RawEntry(b"?.jpg", text.encode(), extra=unicode_path(b"?.jpg", text.encode())) for text in "éè"]
    assert contents(raw_zip(entries)) == {"é": "é".encode(), "è": "è".encode()}


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([RawEntry(b"../a.jpg")], "leads out"),
        ([RawEntry(b"b/../a.jpg", system=UNIX)], "leads out"),
        ([RawEntry(b"b\\..\\a.jpg", system=UNIX), RawEntry(b"b/c")], "leads out"),
        ([RawEntry(b"b/..")], "leads out"),
        ([RawEntry(b"a.jpg", extra=unicode_path(b"a.jpg", b"../a.jpg"))], "leads out"),
        ([RawEntry(b"a.jpg\0.txt")], "leads out"),
        ([RawEntry(b"")], "names no file"),
        ([RawEntry(b"a.jpg"), RawEntry(b"./a.jpg")], "twice"),
        ([RawEntry(b"b/a.jpg"), RawEntry(b"b\\a.jpg")], "twice"),
        ([RawEntry(b"/a.jpg"), RawEntry(b"C:/a.jpg")], "twice"),
        ([RawEntry("é".encode()), RawEntry("é".encode("cp437"))], "twice"),
    ],
)
def test_names_that_are_refused(entries: Sequence[RawEntry], sentence: str) -> None:
    """A name that leads out, no name, and two files of one path; no file takes another one's place."""
    with pytest.raises(ZipNameError, match=sentence):
        contents(raw_zip(entries))


def test_a_name_that_is_marked_as_utf8_but_is_not() -> None:
    with pytest.raises(zipfile.BadZipFile, match="not UTF-8"):
        contents(raw_zip([RawEntry(b"\xff.jpg", flags=UTF8)]))


def test_layouts_of_a_zip() -> None:
    """A self-extracting zip, sizes after the data, and a zip64 give the same bytes."""
    entry = RawEntry(b"a.jpg", b"data " * 40, flags=DESCRIPTOR, method=8)
    assert contents(raw_zip([entry])) == {"a.jpg": b"data " * 40}
    assert contents(raw_zip([entry], prefix=b"MZ program")) == {"a.jpg": b"data " * 40}
    zip64 = io.BytesIO()
    with zipfile.ZipFile(zip64, "w") as archive, archive.open("b/a.jpg", "w", force_zip64=True) as file:
        file.write(b"data")
    assert contents(zip64.getvalue()) == {"b/a.jpg": b"data"}


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (RawEntry(b"a", flags=ENCRYPTED), "is encrypted"),
        (RawEntry(b"a", flags=0x41), "is encrypted"),
        (RawEntry(b"a", flags=0x20), "compression method 0"),
        *((RawEntry(b"a", method=method), f"compression method {method};") for method in (1, 9, 12, 14, 93, 95, 99)),
        (RawEntry(b"a", b"x" * 99, method=8, declared=9), "CRC"),
        (RawEntry(b"a", local_name=b"b"), "differ"),
        (RawEntry(b"\xc3\xa9", local_name=b"\xff", flags=UTF8), "utf-8"),
    ],
)
def test_an_entry_that_cannot_be_read_is_an_os_error(entry: RawEntry, sentence: str) -> None:
    """Jobs turn an OSError into the row of this image; every other error would end the job."""
    with pytest.raises(OSError, match=sentence):
        contents(raw_zip([entry]))


def test_damaged_data_is_an_os_error() -> None:
    """Broken deflate data, and an entry that ends with the file."""
    data = raw_zip([RawEntry(b"a", bytes(range(256)) * 9, method=8)])
    for damaged in (data[:31] + b"\xff" * 20 + data[51:], data[:33] + b"\xff\xff\xff" + data[36:]):
        with pytest.raises(OSError, match="while decompressing"):
            contents(damaged)


def test_one_read_is_bounded() -> None:
    """A directory that declares too few or too many bytes does not decide how much is unpacked."""
    data = raw_zip([RawEntry(b"a", bytes(10**6), method=8, declared=2**31)])
    with open_zip(io.BytesIO(data)) as archive:
        ((_, info),) = list_files(archive)
        assert read_entry(archive, info, 999) == bytes(1000)
