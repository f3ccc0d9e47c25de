"""Files that others may read at any time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give the path to write a file at, so that it is there whole or not at all.

    Its name starts with a dot, which readers pass over, and ends in the writer's process and thread.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{get_native_id()}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
