"""Folders and zips as sources of a job: a link does not lead out of a folder, and a zip's paths are clean."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serve_app.batch.sources import FolderSource, open_source
from serve_app.errors import SourceError
from tests.support.raw_zips import RawEntry, raw_zip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a photo, beside a secret file."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.jpg").write_bytes(b"photo")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "b.jpg").write_bytes(b"secret")
    return folder


@pytest.mark.parametrize("target", ["../../secret", "{top}/secret", "../../outside/b.jpg", "../../photos-2/c.jpg"])
def test_a_link_out_of_the_folder_is_listed_but_not_read(folder: Path, target: str) -> None:
    """Relative or absolute; the row of the link gets an error, the other files are read."""
    other = folder.parent / "photos-2"
    other.mkdir()
    (other / "c.jpg").write_bytes(b"secret")
    (folder / "sub" / "link.jpg").symlink_to(target.format(top=folder.parent))
    source = open_source(str(folder))
    assert sorted(source.names()) == ["sub/a.jpg", "sub/link.jpg"]
    assert source.read("sub/a.jpg", 100) == b"photo"
    with pytest.raises(OSError, match="a link that leads out of the folder"):
        source.read("sub/link.jpg", 100)


def test_a_link_within_the_folder_is_read(folder: Path) -> None:
    """Also where the folder itself was named by a link."""
    (folder / "again.jpg").symlink_to("sub/a.jpg")
    (folder.parent / "named").symlink_to(folder)
    source = open_source(str(folder.parent / "named"))
    assert sorted(source.names()) == ["again.jpg", "sub/a.jpg"]
    assert source.read("again.jpg", 100) == b"photo"


def test_links_to_folders_are_not_followed(folder: Path) -> None:
    """Nor is a folder that became a link after it was listed, or a file whose folder did."""
    (folder / "out").symlink_to(folder.parent / "outside")
    (folder / "loop").symlink_to(folder)
    source = open_source(str(folder))
    assert list(source.names()) == ["sub/a.jpg"]
    for path in ("out/b.jpg", "../secret", f"{folder.parent}/secret"):
        with pytest.raises(OSError, match="leads out"):
            source.read(path, 100)
    with pytest.raises(OSError, match="leads out"):
        list(source.names("out/"))


def test_a_file_that_is_replaced_while_it_is_opened_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the path and the opening, another process puts a link in the folder's place."""
    real = os.path.realpath

    def swap(path: str) -> str:
        found = real(path)
        if found.endswith("a.jpg") and not (folder / "before").exists():
            (folder / "sub").rename(folder / "before")
            (folder.parent / "outside" / "a.jpg").write_bytes(b"secret")
            (folder / "sub").symlink_to(folder.parent / "outside")
        return found

    source = FolderSource(folder)
    monkeypatch.setattr(os.path, "realpath", swap)
    with pytest.raises(OSError, match="was replaced"):
        source.read("sub/a.jpg", 100)


def test_a_pattern_reads_links(folder: Path) -> None:
    """Only the command line takes patterns, and its user may read what they may read."""
    (folder / "link.jpg").symlink_to(folder.parent / "secret")
    source = open_source(f"{folder}/*.jpg")
    assert [source.read(name, 100) for name in source.names()] == [b"secret"]


def test_a_zip_has_clean_paths_and_still_knows_stored_names(tmp_path: Path) -> None:
    """A job that was listed by an earlier version, with stored names, goes on."""
    path = tmp_path / "photos.zip"
    path.write_bytes(raw_zip([RawEntry(b"./a.jpg", b"a"), RawEntry(b"b\\c.jpg", b"c"), RawEntry(b".hidden")]))
    source = open_source(str(path))
    assert list(source.names()) == ["a.jpg", "b/c.jpg"]
    assert [source.read(name, 9) for name in ("a.jpg", "./a.jpg", "b/c.jpg", "b\\c.jpg")] == [b"a", b"a", b"c", b"c"]
    with pytest.raises(OSError, match="no such entry"):
        source.read("gone.jpg", 9)


@pytest.mark.parametrize("name", [b"../a.jpg", b"\xff"], ids=["leads out", "not UTF-8"])
def test_a_zip_with_refused_names_is_an_unusable_source(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "photos.zip"
    path.write_bytes(raw_zip([RawEntry(name, flags=0x800)]))
    with pytest.raises(SourceError, match="cannot be read as a zip"):
        open_source(str(path))
