"""Read images from a folder, a glob pattern, a zip or a bucket: names first, in any order, bytes when needed."""

from __future__ import annotations

import glob
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pyarrow import fs

from serve_app.errors import SourceError

MACOS_FOLDER = "__MACOSX"  # macOS adds a shadow of each file to a zip there


class Source(Protocol):
    """A listing of images, and their bytes by name.

    Attributes:
        read_ahead: Reads to keep in flight, for sources with a long latency; 0 reads one image after the other.
    """

    read_ahead: int

    def names(self) -> Iterator[str]:
        """Yield the name of every visible file; an iterator, because a listing may not fit into memory."""

    def read(self, name: str, max_bytes: int) -> bytes:
        """Read at most ``max_bytes + 1`` bytes of a file, which shows a file that is too large.

        Raises:
            OSError, zipfile.BadZipFile: The file cannot be read.
        """


class FolderSource:
    """A local folder and its sub-folders. It does not follow links to other folders."""

    read_ahead = 0

    def __init__(self, path: Path) -> None:
        """Use names below ``path``."""
        self._path = path

    def names(self) -> Iterator[str]:
        """See Source."""
        return self._walk("")

    def read(self, name: str, max_bytes: int) -> bytes:
        """See Source."""
        with (self._path / name).open("rb") as file:
            return file.read(max_bytes + 1)

    def _walk(self, below: str) -> Iterator[str]:
        with os.scandir(self._path / below) as entries:
            for entry in entries:
                if not is_visible(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(f"{below}{entry.name}/")
                elif entry.is_file():
                    yield f"{below}{entry.name}"


class GlobSource(FolderSource):
    """The files that a glob pattern matches; ``**`` matches any number of folders."""

    def __init__(self, pattern: str) -> None:
        """Use absolute paths as names."""
        super().__init__(Path("/"))
        self._pattern = pattern

    def names(self) -> Iterator[str]:
        """See Source."""
        return (path for path in glob.iglob(self._pattern, recursive=True) if os.path.isfile(path))


class ZipSource:
    """A zip file, which is never unpacked. Its directory is kept in memory: 0.6 kB per file."""

    read_ahead = 0

    def __init__(self, path: Path) -> None:
        """Read the directory.

        Raises:
            SourceError: The file is no zip.
        """
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise SourceError(f"{path}: cannot be read as a zip ({error})") from None

    def names(self) -> Iterator[str]:
        """See Source."""
        for info in self._zip.infolist():
            if not info.is_dir() and all(map(is_visible, info.filename.split("/"))):
                yield info.filename

    def read(self, name: str, max_bytes: int) -> bytes:
        """See Source."""
        try:
            with self._zip.open(name) as file:
                return file.read(max_bytes + 1)
        # In this order: no such entry, unknown compression, encrypted entry, truncated entry.
        except (KeyError, NotImplementedError, RuntimeError, EOFError) as error:
            raise OSError(str(error)) from error


class BucketSource:
    """All objects below a prefix such as ``s3://bucket/photos``; AWS credentials are found as AWS's tools find them."""

    read_ahead = 16

    def __init__(self, uri: str) -> None:
        """Prepare a client; nothing is read yet."""
        self._fs, path = filesystem(uri)
        self._path = path.rstrip("/")

    def names(self) -> Iterator[str]:
        """See Source."""
        return self._walk("")

    def read(self, name: str, max_bytes: int) -> bytes:
        """See Source."""
        with self._fs.open_input_file(f"{self._path}/{name}") as file:
            return bytes(file.read(max_bytes + 1))

    def _walk(self, below: str) -> Iterator[str]:
        for info in self._fs.get_file_info(fs.FileSelector(f"{self._path}/{below}".rstrip("/"))):
            if not is_visible(info.base_name):
                continue
            if info.type == fs.FileType.Directory:
                yield from self._walk(f"{below}{info.base_name}/")
            elif info.type == fs.FileType.File:
                yield f"{below}{info.base_name}"


def open_source(source: str) -> Source:
    """Return the reader for a source.

    Args:
        source: Absolute path of a folder or zip, a glob pattern, or a bucket prefix.

    Raises:
        SourceError: The source is none of these.
    """
    path = Path(source)
    if "://" in source:
        return BucketSource(source)
    if path.is_dir():
        return FolderSource(path)
    if path.is_file():
        return ZipSource(path)
    if glob.has_magic(source):
        return GlobSource(source)
    raise SourceError(f"{source}: no such folder or zip, nor a pattern (with *), nor a bucket (s3://…)")


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system that holds a folder, and the folder's path in that file system.

    Args:
        uri: A local path, or an address such as ``s3://bucket/folder``.

    Raises:
        SourceError: The address has an unknown scheme, or the bucket cannot be reached.
    """
    try:
        pair: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), uri)
    except (OSError, ValueError) as error:
        raise SourceError(f"{uri}: {' '.join(str(error).split())}") from None
    return pair


def is_visible(name: str) -> bool:
    """Return whether a job reads files and folders of this name: not hidden ones, nor macOS's shadow files."""
    return not name.startswith(".") and name != MACOS_FOLDER
