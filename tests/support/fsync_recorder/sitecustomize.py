"""Record the fsyncs and new names of a Python process, for tests/support/power_cut.py; imported from PYTHONPATH.

A line is ``fsync`` or ``name``, the inode, and a time in ns: before an fsync started, after a name appeared.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress

if recorded := os.environ.get("FSYNC_LOG"):
    log = os.open(recorded, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    fsync = os.fsync

    def recording_fsync(file: int) -> None:
        """Call fsync, then record it."""
        start = time.time_ns()
        fsync(file)
        os.write(log, f"fsync {os.stat(file).st_ino} {start}\n".encode())

    def recording(create: Callable[..., None], at: int) -> Callable[..., None]:
        """Record the name that a function creates; its path is the argument number ``at``."""

        def create_and_record(*arguments: object, **options: object) -> None:
            create(*arguments, **options)
            path = arguments[at]
            assert isinstance(path, str | bytes | os.PathLike)
            with suppress(FileNotFoundError):  # another process has renamed it already
                os.write(log, f"name {os.lstat(path).st_ino} {time.time_ns()}\n".encode())

        return create_and_record

    os.fsync = recording_fsync
    os.rename, os.replace = recording(os.rename, 1), recording(os.replace, 1)
    os.mkdir = recording(os.mkdir, 0)
