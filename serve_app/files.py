"""Atomic writes and lock files on a local disk."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it to ``path`` when the block ends without an error.

    Readers see the old file or the new one, never a partial file. The temporary name starts with a dot, which readers
    of the folder skip, and ends in process and thread id, so two writers never share it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_native_id()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
