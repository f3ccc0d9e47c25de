"""Weights and cards by address: a path, a bucket (``s3://…``, ``gs://…``), or a URL.

Buckets are read and written with pyarrow, as the prediction log and batch jobs do: its credentials are those of AWS's
own tools, a node's role included, and it needs no package beside those of the service. fsspec reads the rest.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from serve_app.files import atomic_write, create_folder

BUCKETS = ("s3", "gs", "gcs")


@contextmanager
def open_address(address: str) -> Iterator[BinaryIO]:
    """Open a file for reading. Each kind of storage raises its own exceptions."""
    if is_bucket(address):
        filesystem, path = _bucket(address)
        with filesystem.open_input_stream(path) as stream:
            yield stream
    else:
        with fsspec.open(address, "rb") as file:
            yield file


def copy_to(source: Path, address: str) -> None:
    """Copy a local file to an address; a copy that fails leaves nothing there. Raises as ``open_address``."""
    if is_bucket(address):
        filesystem, path = _bucket(address)
        # One write: what a broken connection cuts is never completed, so no object appears.
        with source.open("rb") as file, filesystem.open_output_stream(path) as stream:
            stream.write(file.read())
        return
    storage, path = fsspec.core.url_to_fs(address)
    if "file" in (protocols := storage.protocol) or protocols == "file":
        create_folder(Path(path).parent)
        with atomic_write(Path(path)) as unfinished:
            shutil.copyfile(source, unfinished)
        return
    storage.makedirs(path.rpartition("/")[0], exist_ok=True)
    storage.put_file(str(source), path)  # unlike a file object, it leaves no object behind when it fails


def has_copy(source: Path, address: str) -> bool:
    """Return whether an address holds the same bytes as a local file. Raises as ``open_address``."""
    try:
        with open_address(address) as file:
            return file.read() == source.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_bucket(address: str) -> bool:
    """Return whether pyarrow reads an address."""
    return address.partition("://")[0] in BUCKETS


def _bucket(address: str) -> tuple[Any, str]:
    from pyarrow import fs  # imported here: only buckets need it

    filesystem, path = fs.FileSystem.from_uri(address)
    return filesystem, path
