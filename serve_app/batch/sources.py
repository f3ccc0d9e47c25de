"""Read images from a folder, a glob pattern, a zip or a bucket: names first, in any order, bytes when needed."""

from __future__ import annotations

import glob
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from pyarrow import fs

from serve_app.batch.outages import is_passing
from serve_app.errors import SourceError, SourceUnavailableError

MACOS_FOLDER = "__MACOSX"  # macOS adds a shadow of each file to a zip there


class Source(ABC):
    """A listing of images, and their bytes by name."""

    read_ahead = 0  # reads to keep in flight, for sources with a long latency; 0 reads one image after the other

    def names(self, below: str = "") -> Iterator[str]:
        """Yield the name of every visible file; an iterator, because a listing may not fit into memory."""
        for name, is_folder in self._entries(below):
            if is_folder:
                yield from self.names(f"{below}{name}/")
            else:
                yield below + name

    def read(self, name: str, max_bytes: int) -> bytes:
        """Read at most ``max_bytes + 1`` bytes of a file, which shows a file that is too large.

        Raises:
            OSError, zipfile.BadZipFile: The file cannot be read.
        """
        with self._open(name) as file:
            return file.read(max_bytes + 1)

    @abstractmethod
    def _entries(self, below: str) -> Iterator[tuple[str, bool]]:
        """Yield each visible file and folder of a folder: its name, and whether it is a folder."""

    @abstractmethod
    def _open(self, name: str) -> AbstractContextManager[IO[bytes]]: ...


class FolderSource(Source):
    """A local folder and its sub-folders. It does not follow links to other folders."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _entries(self, below: str) -> Iterator[tuple[str, bool]]:
        with os.scandir(self._path / below) as entries:
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_visible(entry.name) and (is_folder or entry.is_file()):
                    yield entry.name, is_folder

    def _open(self, name: str) -> IO[bytes]:
        return (self._path / name).open("rb")


class GlobSource(FolderSource):
    """The files that a glob pattern matches, by absolute path; ``**`` matches any number of folders."""

    def __init__(self, pattern: str) -> None:
        super().__init__(Path("/"))
        self._pattern = pattern

    def _entries(self, below: str) -> Iterator[tuple[str, bool]]:
        return ((path, False) for path in glob.iglob(self._pattern, recursive=True) if os.path.isfile(path))


class ZipSource(Source):
    """A zip file, which is never unpacked. Its directory is kept in memory: 0.6 kB per file."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise SourceError(f"{path}: cannot be read as a zip ({error})") from None

    def _entries(self, below: str) -> Iterator[tuple[str, bool]]:
        for info in self._zip.infolist():
            if not info.is_dir() and all(map(is_visible, info.filename.split("/"))):
                yield info.filename, False

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with self._zip.open(name) as file:
                yield file
        # In this order: no such entry, unknown compression, encrypted entry, truncated entry.
        except (KeyError, NotImplementedError, RuntimeError, EOFError) as error:
            raise OSError(str(error)) from error


class BucketSource(Source):
    """All objects below a prefix such as ``s3://bucket/photos``; AWS credentials are found as AWS's tools find them."""

    read_ahead = 16

    def __init__(self, uri: str) -> None:
        self._fs, path = filesystem(uri)
        self._path = path.rstrip("/")

    def _entries(self, below: str) -> Iterator[tuple[str, bool]]:
        for info in self._fs.get_file_info(fs.FileSelector(f"{self._path}/{below}".rstrip("/"))):
            if is_visible(info.base_name) and info.type in (fs.FileType.Directory, fs.FileType.File):
                yield info.base_name, info.type == fs.FileType.Directory

    def _open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        return self._fs.open_input_file(f"{self._path}/{name}")  # type: ignore[no-any-return] # pyarrow has no types


def open_source(source: str) -> Source:
    """Return the reader for an absolute path of a folder or zip, a glob pattern, or a bucket prefix."""
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
    """Return the file system of a local path or an address such as ``s3://bucket/folder``, and the path in it.

    Raises:
        SourceError: The address has an unknown scheme, or the bucket cannot be reached.
    """
    try:
        pair: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), uri)
    except (OSError, ValueError) as error:
        kind = SourceUnavailableError if isinstance(error, OSError) and is_passing(error) else SourceError
        raise kind(f"{uri}: {' '.join(str(error).split())}") from None
    return pair


def is_visible(name: str) -> bool:
    """Return whether a job reads files and folders of this name: not hidden ones, nor macOS's shadow files."""
    return not name.startswith(".") and name != MACOS_FOLDER
