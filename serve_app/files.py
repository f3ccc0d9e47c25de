"""Files that survive a crash, a full disk and a power cut, and lock files; on a local disk."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)

MAX_PARTIAL_AGE_S = 86400  # a temporary file that is older belongs to a process that was killed
LOCK_POLL_S = 0.02
NO_FSYNC = (errno.EINVAL, errno.ENOTSUP)  # some network file systems cannot fsync a folder


class CorruptFileError(ValueError):
    """A stored file is empty, cut, or holds a value that this version does not know."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it to ``path`` when the block ends without an error.

    Readers see the old file or the new one, never a partial file, also after a power cut: the file is on disk before
    the rename, and the rename is on disk before this returns. The temporary name starts with a dot, which readers of
    the folder skip, and ends in random digits, so two writers never share it, on any node.

    Raises:
        OSError: The disk is full, or the folder cannot be written to. The temporary file is deleted.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def fsync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
    finally:
        os.close(descriptor)


def create_folder(path: Path) -> None:
    """Create a folder and its parents, unless they exist, so that a power cut does not take them back."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync(folder.parent)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; files that another process deletes meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def read_stored(kind: type[Model], path: Path) -> Model:
    """Return the content of a JSON file that this or another version of the service wrote.

    Settings reject unknown fields, stored data ignores them: after a rollback, files of the newer version still read.

    Raises:
        CorruptFileError: The file is empty, cut, or not valid for ``kind``; the message holds no path.
        OSError: The file is missing or cannot be read.
    """
    try:
        return kind.model_validate_json(path.read_bytes(), extra="ignore")
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise CorruptFileError(f"{field}: {first['msg']}".removeprefix(": ")) from None


def delete_partial_files(path: Path) -> None:
    """Delete temporary files of ``atomic_write`` to this path, and of torch's downloads, that a killed process left."""
    oldest = time.time() - MAX_PARTIAL_AGE_S
    for pattern in (f".{path.name}.*", f"{path.name}.*.partial"):
        for partial in path.parent.glob(pattern):
            with suppress(OSError):  # another process deletes it too
                if partial.stat().st_mtime < oldest:
                    partial.unlink()


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a lock file; Linux releases it when the process dies.

    Raises:
        BlockingIOError: Another holder has the lock; this call does not wait for it.
        OSError: The lock file cannot be opened for writing.
    """
    with path.open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def lock_within(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock of a lock file, and wait for it if need be; see ``exclusive_lock``.

    Raises:
        BlockingIOError: Other holders had the lock for ``timeout_s``.
    """
    last_try_s = time.monotonic() + timeout_s
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(exclusive_lock(path))
                break
            except BlockingIOError:
                if time.monotonic() > last_try_s:
                    raise
                time.sleep(LOCK_POLL_S)
        yield
