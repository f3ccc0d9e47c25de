"""Where images come from: folder, glob, zip, bucket. First their names, in no order; bytes when they are needed."""

from __future__ import annotations

import glob
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pyarrow import fs

from serve_app.errors import SourceError

LEFT_OUT = "__MACOSX"  # macOS puts a shadow of each file there; names with a leading dot are left out, too


class Source(Protocol):
    """Many images.

    Attributes:
        ahead: How many are worth reading at a time, because each takes long to come.
    """

    ahead: int

    def names(self) -> Iterator[str]:
        """Every file, one by one, so that any number fits into memory."""

    def read(self, name: str, most: int) -> bytes:
        """Read a file, or as much of it as shows that it is larger than ``most`` bytes.

        Raises:
            OSError, zipfile.BadZipFile: It cannot be read.
        """


class Folder:
    """A folder of this machine with all its sub-folders; links to other folders are not followed."""

    ahead = 0

    def __init__(self, path: Path) -> None:
        """Names are below ``path``."""
        self._path = path

    def names(self) -> Iterator[str]:
        """See Source."""
        return self._walk("")

    def read(self, name: str, most: int) -> bytes:
        """See Source."""
        with (self._path / name).open("rb") as file:
            return file.read(most + 1)

    def _walk(self, below: str) -> Iterator[str]:
        with os.scandir(self._path / below) as entries:
            for entry in entries:
                if not shown(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(f"{below}{entry.name}/")
                elif entry.is_file():
                    yield f"{below}{entry.name}"


class Glob(Folder):
    """The files that a pattern matches; ``**`` is any number of folders."""

    def __init__(self, pattern: str) -> None:
        """Names are whole paths."""
        super().__init__(Path("/"))
        self._pattern = pattern

    def names(self) -> Iterator[str]:
        """See Source."""
        return (path for path in glob.iglob(self._pattern, recursive=True) if os.path.isfile(path))


class Zip:
    """A zip on a disk that every worker sees; it is never unpacked. Its directory is in memory, 0.6 kB a file."""

    ahead = 0

    def __init__(self, path: Path) -> None:
        """Read the directory.

        Raises:
            SourceError: It is no zip.
        """
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise SourceError(f"{path}: cannot be read as a zip ({error})") from None

    def names(self) -> Iterator[str]:
        """See Source."""
        for info in self._zip.infolist():
            if not info.is_dir() and all(map(shown, info.filename.split("/"))):
                yield info.filename

    def read(self, name: str, most: int) -> bytes:
        """See Source."""
        try:
            with self._zip.open(name) as file:
                return file.read(most + 1)
        except (KeyError, NotImplementedError, RuntimeError, EOFError) as error:  # unknown, method, encrypted, cut
            raise OSError(str(error)) from error


class Bucket:
    """What is below a prefix such as ``s3://bucket/photos``; credentials as AWS's own tools find them."""

    ahead = 16

    def __init__(self, uri: str) -> None:
        """Connect to nothing yet."""
        self._fs, path = filesystem(uri)
        self._path = path.rstrip("/")

    def names(self) -> Iterator[str]:
        """See Source."""
        return self._walk("")

    def read(self, name: str, most: int) -> bytes:
        """See Source."""
        with self._fs.open_input_file(f"{self._path}/{name}") as file:
            return bytes(file.read(most + 1))

    def _walk(self, below: str) -> Iterator[str]:
        for each in self._fs.get_file_info(fs.FileSelector(f"{self._path}/{below}".rstrip("/"))):
            if not shown(each.base_name):
                continue
            if each.type == fs.FileType.Directory:
                yield from self._walk(f"{below}{each.base_name}/")
            elif each.type == fs.FileType.File:
                yield f"{below}{each.base_name}"


def open_source(source: str) -> Source:
    """Find out what a source is.

    Args:
        source: Absolute path of a folder or a zip, a pattern, or a bucket's prefix.

    Raises:
        SourceError: None of these.
    """
    path = Path(source)
    if "://" in source:
        return Bucket(source)
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return Zip(path)
    if glob.has_magic(source):
        return Glob(source)
    raise SourceError(f"{source}: no such folder or zip, nor a pattern (with *), nor a bucket (s3://…)")


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """What holds a folder, and the folder's path in it.

    Args:
        uri: A path of this machine, or an address such as ``s3://bucket/folder``.

    Raises:
        SourceError: An address of a kind that is not known, or a bucket that does not answer.
    """
    try:
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), uri)
    except (OSError, ValueError) as error:
        raise SourceError(f"{uri}: {' '.join(str(error).split())}") from None
    return found


def shown(name: str) -> bool:
    """Whether a file or folder of this name is looked at."""
    return not name.startswith(".") and name != LEFT_OUT
