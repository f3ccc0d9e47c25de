"""The small files that say which version of each head serves."""

from __future__ import annotations

import os
from pathlib import Path

from serve_app.errors import UnknownHeadError
from serve_app.files import atomic_write, create_folder, fsync, read_stored
from serve_app.heads.names import is_stored_name
from serve_app.heads.stored import HeadEntry

SUFFIX = ".json"
Mark = tuple[int, int]  # inode and time of change of a file: a replaced file has another one


class Pointers:
    """One file per head, replaced atomically."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stamp(self) -> int:
        """Return a time in ns that changes whenever a pointer is replaced or deleted; 0 before the first head."""
        try:
            return self._folder.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def marks(self) -> dict[str, Mark]:
        """Return the names of all heads with the marks of their files."""
        marks: dict[str, Mark] = {}
        try:
            with os.scandir(self._folder) as files:
                for file in files:
                    if is_stored_name(name := file.name.removesuffix(SUFFIX)):
                        status = file.stat()
                        marks[name] = (status.st_ino, status.st_mtime_ns)
        except FileNotFoundError:  # no head was written yet, or one was deleted a moment ago: the next look is complete
            return marks
        return marks

    def read(self, name: str) -> HeadEntry:
        """Return the entry of a head.

        Raises:
            UnknownHeadError: There is no head of that name (404).
            CorruptFileError: The file is damaged.
        """
        try:
            return read_stored(HeadEntry, self._path(name))
        except FileNotFoundError:
            raise unknown(name) from None

    def write(self, entry: HeadEntry) -> None:
        """Replace the entry of a head; it is on disk on return."""
        create_folder(self._folder)
        with atomic_write(self._path(entry.name)) as path:
            path.write_text(entry.model_dump_json(indent=1))

    def delete(self, name: str) -> None:
        """Delete the entry of a head, on disk too."""
        self._path(name).unlink()
        fsync(self._folder)

    def _path(self, name: str) -> Path:
        if not is_stored_name(name):
            raise unknown(name)
        return self._folder / f"{name}{SUFFIX}"


def unknown(name: str) -> UnknownHeadError:
    """Return the error for a head that does not exist, or that the caller may not see."""
    return UnknownHeadError(f"no head {name!r:.80}")
