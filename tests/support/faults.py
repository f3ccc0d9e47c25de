"""Faults of disks and power: full disks, files that a power cut emptied, and a record of what reached the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

POWER_CUT = (b"", b"\0" * 64)  # what a file holds after a power cut: nothing, or zeros of its former length
WRONG_JSON = (*POWER_CUT, b"{", b"[]", b"null", b'"text"', b"\xff\xfe{}", b'{"a": 1e999', b"[" * 5000)


class DiskRecorder:
    """Records fsyncs and renames of this process, and computes which files a power cut would keep.

    Attributes:
        unsafe: Renames of files and folders that were not on disk before, as ``source name -> target name``.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._synced: set[tuple[int, int]] = set()
        self._named: set[Path] = set()
        self._renamed: list[Path] = []
        self.unsafe: list[str] = []
        fsync, rename, replace = os.fsync, os.rename, os.replace

        def record_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self._synced.add(_identity(os.fstat(descriptor)))
            self._named.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

        def record(move: Callable[..., None]) -> Callable[..., None]:
            def moved(source: str, target: str, **options: int) -> None:
                files = [Path(source), *Path(source).rglob("*")] if Path(source).is_dir() else [Path(source)]
                if any(_identity(file.stat()) not in self._synced for file in files):
                    self.unsafe.append(f"{Path(source).name} -> {Path(target).name}")
                move(source, target, **options)
                self._named.discard(Path(target).parent)
                self._renamed.append(Path(target))

            return moved

        patch.setattr(os, "fsync", record_fsync)
        patch.setattr(os, "rename", record(rename))
        patch.setattr(os, "replace", record(replace))

    @property
    def unnamed(self) -> list[Path]:
        """Renamed files whose folder was not fsynced after the rename: a power cut takes the rename back."""
        return [path for path in self._renamed if path.parent not in self._named]

    @property
    def renamed(self) -> set[str]:
        """Names that a file got by a rename."""
        return {path.name for path in self._renamed}


def emptied(folder: Path) -> Iterator[Path]:
    """Empty each file below a folder in turn, as a power cut would, and restore it afterwards."""
    contents = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    for path, before in contents.items():
        for content in POWER_CUT if before else ():
            path.write_bytes(content)
            yield path
            path.write_bytes(before)


def full_disk(*_arguments: object, **_options: object) -> None:
    """Replace a function of os: raise the error of a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino
