"""check_zip: what is refused by the directory alone, and that no damaged zip ends in an unexpected error."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from serve_app.batch.sources import open_source
from serve_app.batch.zip_archive import check_zip
from serve_app.config import JobsConfig
from serve_app.errors import ArchiveError, MalformedRequestError, ServiceError, SourceError, TooLargeError
from serve_app.settings import MiB
from tests.support.photos import encode, make_picture
from tests.support.raw_zips import DESCRIPTOR, ENCRYPTED, UNIX, UTF8, RawEntry, raw_zip, unicode_path

LIMITS = JobsConfig(folder=".", max_zip_bytes=MiB, max_zip_entries=50, max_unpacked_bytes=100 * MiB)


def check(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "photos.zip"
    path.write_bytes(data)
    check_zip(path, LIMITS)


WHITE = encode(make_picture(1200, 900).point(lambda _: 255), "BMP")  # 3.2 MB; a thousandth of it in a zip


@pytest.mark.parametrize(
    "entries",
    [
        [RawEntry(b"scan.bmp", WHITE, method=8)],
        [RawEntry(f"{n}.bmp".encode(), WHITE, method=8) for n in range(20)],
        [RawEntry(b"page.bmp", bytes(26_000_000), method=8), RawEntry(b"a.jpg")],
        [RawEntry(b"a.jpg", flags=DESCRIPTOR), RawEntry(b"b.jpg", b"b" * 99, flags=DESCRIPTOR, method=8)],
        [RawEntry(b"a: day.jpg"), RawEntry(b"/b.jpg"), RawEntry(b"C:\\c.jpg")],
        [RawEntry(b"photos/", b""), RawEntry(b"photos/", b""), RawEntry(b"photos/a.jpg")],
        [RawEntry(b".DS_Store", flags=ENCRYPTED), RawEntry(b"a.jpg")],
    ],
    ids=["white", "many white", "white page", "descriptors", "names", "folder twice", "hidden encrypted"],
)
def test_sound_zips_are_accepted(tmp_path: Path, entries: Sequence[RawEntry]) -> None:
    """White pictures shrink to a thousandth; a ratio alone makes no zip bomb."""
    check(tmp_path, raw_zip(entries))
    check(tmp_path, raw_zip(entries, prefix=b"MZ" * 500))


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        (raw_zip([RawEntry(b"b/z.bmp", bytes(40 * MiB), method=8)]), TooLargeError, "'b/z.bmp' grows 10.. times"),
        (raw_zip([RawEntry(b"z", declared=99 * MiB)]), TooLargeError, "'z' grows"),
        (raw_zip([RawEntry(b"z%d" % n, declared=21 * MiB) for n in range(5)]), TooLargeError, "once unpacked"),
        (raw_zip([RawEntry(b"a.jpg", b"x" * 50), RawEntry(b"b.jpg")], same_offset=True), ArchiveError, "overlaps"),
        (raw_zip([RawEntry(b"a.jpg", b"x", declared=3, method=9)]), ArchiveError, "compression method 9"),
        (raw_zip([RawEntry(b"a.jpg", flags=ENCRYPTED)]), ArchiveError, "'a.jpg' is encrypted"),
        (raw_zip([RawEntry(b"a.jpg", system=UNIX, attributes=0o120777 << 16)]), ArchiveError, "a link or a device"),
        (raw_zip([RawEntry(b"\xff", flags=UTF8)]), MalformedRequestError, "not UTF-8"),
        (raw_zip([RawEntry(b"a.jpg", extra=b"\1\0\xff\xff")]), MalformedRequestError, "extra field"),
        (raw_zip([]), MalformedRequestError, "no files"),
        (raw_zip([RawEntry(b"photos\\", b""), RawEntry(b"b/", b"")]), MalformedRequestError, "no files"),
        (raw_zip([RawEntry(b"__MACOSX\\._a.jpg"), RawEntry(b".DS_Store")]), MalformedRequestError, "no files"),
        (bytes(MiB + 1), TooLargeError, "the limit is 1,048,576"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_zips_that_are_refused(tmp_path: Path, data: bytes, error: type[ServiceError], sentence: str) -> None:
    """The message names the entry, and no path of the server."""
    with pytest.raises(error, match=sentence) as refused:
        check(tmp_path, data)
    assert str(tmp_path) not in str(refused.value)


def test_a_file_that_cannot_be_read_shows_no_path(tmp_path: Path) -> None:
    with pytest.raises(MalformedRequestError, match=r"^not a complete zip file \(No such file or directory\)$"):
        check_zip(tmp_path / "gone.zip", LIMITS)


def test_damaged_zips_end_in_an_error_of_the_service(tmp_path: Path) -> None:
    """2000 mutations: a zip is refused, or a job lists it and reads each entry or gets an OSError for its row."""
    raw = "é.jpg".encode("cp437")
    entries = [
        RawEntry(b"photos\\", b"", attributes=0x10),
        RawEntry("photos/名前.jpg".encode(), bytes(range(256)) * 4, UNIX, method=8, flags=DESCRIPTOR),
        RawEntry(raw, b"stored" * 50, extra=unicode_path(raw, "é.jpg".encode())),
        RawEntry(b"a.jpg", b"x" * 500, flags=UTF8, method=8),
    ]
    sound, generator = raw_zip(entries), random.Random(20)
    path, outcomes = tmp_path / "photos.zip", set()
    for _ in range(2000):
        data = bytearray(sound)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.choice((0, 1, 0x7F, 0xFF, generator.randrange(256)))
        path.write_bytes(data[: generator.choice((len(data), len(data), generator.randrange(len(data)))) or None])
        try:
            check_zip(path, LIMITS)
            outcomes.add("accepted")
        except ServiceError:
            outcomes.add("refused")
        try:
            source = open_source(str(path))
        except SourceError:
            outcomes.add("not opened")
            continue
        for name in source.names():
            try:
                assert len(source.read(name, 100)) <= 101
            except OSError:
                outcomes.add("not read")
    assert outcomes == {"accepted", "refused", "not opened", "not read"}
