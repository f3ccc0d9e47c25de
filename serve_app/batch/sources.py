"""Read images from a folder, a glob pattern, a zip or a bucket: names first, in any order, bytes when needed."""

from __future__ import annotations

import glob
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from pyarrow import fs

from serve_app.batch.outages import is_passing
from serve_app.errors import SourceError, SourceUnavailableError
from serve_app.zip_entries import ZipNameError, is_visible, list_files, open_zip, read_entry


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

    @abstractmethod
    def read(self, name: str, max_bytes: int) -> bytes:
        """Read at most ``max_bytes + 1`` bytes of a file, which shows a file that is too large.

        Raises:
            OSError: The file cannot be read.
        """

    @abstractmethod
    def _entries(self, below: str) -> Iterator[tuple[str, bool]]:
        """Yield each visible file and folder of a folder: its name, and whether it is a folder."""


class FolderSource(Source):
    """A local folder and its sub-folders.

    It does not follow links to folders, and opens a link to a file only if the file is in this folder too. Whoever may
    write into an allowed folder could otherwise let a job read every file that the service can read.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.path.realpath(path)

    def read(self, name: str, max_bytes: int) -> bytes:
        """Read a file that is in the folder."""
        path = self._resolve(name)
        with open(path, "rb") as file:
            # Another process may have put a link into the path in the meantime, and may have taken it away again.
            if os.path.realpath(path) != path or not os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                raise OSError("the file was replaced while it was opened")
            return file.read(max_bytes + 1)

    def _entries(self, below: str) -> Iterator[tuple[str, bool]]:
        with os.scandir(self._resolve(below)) as entries:
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_visible(entry.name) and (is_folder or entry.is_file()):
                    yield entry.name, is_folder

    def _resolve(self, name: str) -> str:
        path = os.path.realpath(os.path.join(self._path, name))
        if os.path.commonpath([path, self._path]) != self._path:
            raise OSError("a link that leads out of the folder is not followed")
        return path


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
            self._zip = open_zip(path)
            self._files = dict(list_files(self._zip))
        except (OSError, zipfile.BadZipFile, ZipNameError) as error:
            kind = SourceUnavailableError if isinstance(error, OSError) and is_passing(error) else SourceError
            raise kind(f"{path}: cannot be read as a zip ({error})") from None

    def read(self, name: str, max_bytes: int) -> bytes:
        """Read an entry by its path, or by its stored name: listings of earlier versions hold stored names."""
        info = self._files.get(name) or self._zip.NameToInfo.get(name)
        if info is None:
            raise OSError("the zip has no such entry any more")
        return read_entry(self._zip, info, max_bytes)

    def _entries(self, below: str) -> Iterator[tuple[str, bool]]:
        return ((path, False) for path in self._files)


class BucketSource(Source):
    """All objects below a prefix such as ``s3://bucket/photos``; AWS credentials are found as AWS's tools find them."""

    read_ahead = 16

    def __init__(self, uri: str) -> None:
        self._fs, path = filesystem(uri)
        self._path = path.rstrip("/")

    def read(self, name: str, max_bytes: int) -> bytes:
        """Read the beginning of an object."""
        with self._fs.open_input_file(f"{self._path}/{name}") as file:
            return bytes(file.read(max_bytes + 1))

    def _entries(self, below: str) -> Iterator[tuple[str, bool]]:
        for info in self._fs.get_file_info(fs.FileSelector(f"{self._path}/{below}".rstrip("/"))):
            if is_visible(info.base_name) and info.type in (fs.FileType.Directory, fs.FileType.File):
                yield info.base_name, info.type == fs.FileType.Directory


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
