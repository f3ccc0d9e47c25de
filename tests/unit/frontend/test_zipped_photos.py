"""Zips of photos that a visitor uploads."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Iterable

import pytest

from frontend import zipped_photos
from frontend.zipped_photos import ZipError, unzip
from tests.support.raw_zips import RawEntry, raw_zip

PHOTOS = 18
FORMATS = ("jpeg", "png")


def zipped(names: Iterable[str]) -> bytes:
    """Return a zip of files with these names, and of two files that are no photos."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in ("__MACOSX/mine/0.jpg", "mine/readme.txt", *names):
            archive.writestr(name, "content")
    return data.getvalue()


def test_broken_and_oversized_zips_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no zip, one without photos and one with too many have a sentence each."""
    data = zipped(f"mine/{i}.jpg" for i in range(PHOTOS))
    with pytest.raises(ZipError, match="cannot be read"):
        unzip(b"text", FORMATS)
    assert len(unzip(data, FORMATS)) == PHOTOS
    with pytest.raises(ZipError, match="no photos in this zip"):
        unzip(zipped([]), FORMATS)
    monkeypatch.setattr(zipped_photos, "MAX_ENTRIES", PHOTOS - 1)
    with pytest.raises(ZipError, match="more than 17 photos"):
        unzip(data, FORMATS)
    monkeypatch.setattr(zipped_photos, "MAX_ENTRIES", 1)  # already the size of the directory is too much
    with pytest.raises(ZipError, match="more than 1 photos"):
        unzip(data, FORMATS)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (RawEntry(b"ant/../a.jpg"), "leads out"),
        (RawEntry(b"ant/a.jpg", flags=1), r"ant/a\.jpg in the zip cannot be read: the entry is encrypted"),
        (RawEntry(b"ant/a.jpg", method=14), "compression method 14"),
        (RawEntry(b"ant/a.jpg", b"\xff" * 99, method=8, declared=10), "CRC"),
        (RawEntry(b"ant/a.jpg", declared=257 << 20), "or 256 MB"),
        (RawEntry(b"\xff.jpg", flags=0x800), "not UTF-8"),
    ],
)
def test_a_zip_that_cannot_be_read_has_a_sentence(entry: RawEntry, sentence: str) -> None:
    """Each was an exception on the page, or unpacked without a bound."""
    with pytest.raises(ZipError, match=sentence):
        unzip(raw_zip([entry]), FORMATS)


def test_a_lying_directory_does_not_decide_how_much_is_unpacked() -> None:
    """100 MB that the directory declares as 10 bytes take less than 5 MB."""
    data = raw_zip([RawEntry(b"ant/a.jpg", bytes(100_000_000), method=8, declared=10)])
    tracemalloc.start()
    with pytest.raises(ZipError, match="cannot be read"):
        unzip(data, FORMATS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
