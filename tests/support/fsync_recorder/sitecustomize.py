"""Record the fsyncs and new names of a Python process, for tests/support/power_cut.py; imported from PYTHONPATH.

A line is ``fsync`` or ``name``, the device and inode of a file, and a time in ns: before an fsync started, after a name
appeared. A name that is taken over from another file is not new: a disk has either file under it at any time.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress

if recorded := os.environ.get("FSYNC_LOG"):
    log = os.open(recorded, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    fsync = os.fsync

    def note(kind: str, status: os.stat_result, time_ns: int) -> None:
        """Write one line."""
        os.write(log, f"{kind} {status.st_dev}:{status.st_ino} {time_ns}\n".encode())

    def recording_fsync(file: int) -> None:
        """Call fsync, then record it."""
        start = time.time_ns()
        fsync(file)
        note("fsync", os.stat(file), start)

    def recording(create: Callable[..., None], at: int) -> Callable[..., None]:
        """Record the name that a function creates; its path is the argument number ``at``."""

        def create_and_record(*arguments: object, **options: object) -> None:
            path = arguments[at]
            assert isinstance(path, str | bytes | os.PathLike)
            is_new = not os.path.lexists(path)
            create(*arguments, **options)
            with suppress(FileNotFoundError):  # another process has renamed it already
                if is_new:
                    note("name", os.lstat(path), time.time_ns())

        return create_and_record

    os.fsync = recording_fsync
    os.rename, os.replace = recording(os.rename, 1), recording(os.replace, 1)
    os.mkdir = recording(os.mkdir, 0)
