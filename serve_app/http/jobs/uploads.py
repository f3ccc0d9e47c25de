"""Write an uploaded zip to disk while it arrives, whatever its size: a raw body, or the only file of a form."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from serve_app.config import JobsConfig
from serve_app.errors import MalformedRequestError, OverloadedError
from serve_app.http.form_names import read_names
from serve_app.http.form_parts import FormParts
from serve_app.http.limited_request import LimitedRequest, receive_within
from serve_app.http.uploads import content_type
from serve_app.settings import MiB

# Browsers and tools know zips under several names; the last four are what clients send that set no type: S3's default,
# curl's default, any, and none. The zip's own bytes are checked either way.
RAW_TYPES = (
    *("application/zip", "application/x-zip-compressed", "application/x-zip", "application/octet-stream"),
    *("binary/octet-stream", "application/x-www-form-urlencoded", "*/*", ""),
)
FORM = "multipart/form-data"
ZIP_STARTS = (b"PK\3\4", b"PK\5\6")  # the header of the first file, or the end of an empty zip
ZIP_START_BYTES = 4
FORM_OVERHEAD_BYTES = 64 * 1024  # boundaries, headers and other fields around the file
MAX_PARTS = 64
WRITE_BYTES = MiB  # per write to disk
IDLE_TIMEOUT_S = 30  # longest pause of a client
DEFAULT_NAME = "upload.zip"


async def save_zip(request: Request, path: Path, limits: JobsConfig) -> tuple[str, str]:
    """Write the zip of a request to ``path``.

    Returns:
        Its SHA-256 in hex, and the file name that the client gave.

    Raises:
        MalformedRequestError: The form does not hold exactly one file, has too large fields beside it, or the body is
            truncated (400).
        SlowBodyError: No byte arrived for IDLE_TIMEOUT_S (408).
        TooLargeError: The body is larger than ``jobs.max_zip_bytes``, or the form has too many parts (413).
        OverloadedError: The disk is full (503).
    """
    _, options = parse_options_header(request.headers.get("content-type", ""))
    form = _FormFile(options.get(b"boundary", b"")) if content_type(request) == FORM else None
    max_bytes = limits.max_zip_bytes + (FORM_OVERHEAD_BYTES if form else 0)
    slow = f"no byte of the body arrived for {IDLE_TIMEOUT_S} s; send it again"
    receive = partial(receive_within, request.receive, IDLE_TIMEOUT_S, slow)
    body = LimitedRequest(request.scope, receive, max_bytes).stream()
    try:
        digest = await _write(form.extract(body) if form else body, path)
    except OSError as error:
        raise OverloadedError(f"the zip cannot be stored now ({error.strerror}); try again later", 60) from error
    return digest, form.name if form else DEFAULT_NAME


async def _write(chunks: AsyncIterator[bytes], path: Path) -> str:
    """Write chunks to a file in a worker thread; return their SHA-256."""
    digest, buffer = hashlib.sha256(), bytearray()
    with path.open("wb") as file:

        def flush() -> None:
            file.write(buffer)
            digest.update(buffer)
            buffer.clear()

        async for chunk in chunks:
            buffer += chunk
            if len(buffer) >= WRITE_BYTES:
                await asyncio.to_thread(flush)
        await asyncio.to_thread(flush)
        await asyncio.to_thread(os.fsync, file.fileno())
    return digest.hexdigest()


class _FormFile(FormParts):
    """Extracts the one file of a form while the form arrives; other fields, such as a submit button, are skipped.

    A part is a file if it has a file name, a type that is not text, or the first bytes of a zip: ``curl -F
    'file=<a.zip'`` sends neither name nor type.
    """

    def __init__(self, boundary: bytes) -> None:
        self.name = ""  # file name that the client gave; known once the file's first byte has arrived
        self._skipped_bytes = 0
        self._file_name: str | None = None  # of the current part; empty for a file without a name; None for a field
        self._is_file = False  # this part is the file, its first bytes have shown
        self._first = bytearray()
        self._data = bytearray()
        super().__init__(boundary, MAX_PARTS)

    async def extract(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the file's bytes."""
        async for chunk in body:
            self.write(chunk)
            yield bytes(self._data)
            self._data.clear()
        self.check_complete()
        if not self.name:
            raise MalformedRequestError("the form holds no file: send the zip in a field with a file name")

    def begin_part(self) -> None:
        _, self._file_name = read_names(self.headers.get(b"content-disposition", b""))
        kind = self.headers.get(b"content-type", b"").lower()
        if self._file_name is None and kind and not kind.startswith(b"text/"):
            self._file_name = ""
        self._is_file = False
        self._first.clear()

    def add_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if not self._is_file:
            if self._file_name is None:
                known = len(self._first)
                self._first += piece[: ZIP_START_BYTES - known]
                if bytes(self._first) not in ZIP_STARTS:
                    self._skip(len(piece))
                    return
                piece = bytes(self._first) + piece[ZIP_START_BYTES - known :]
            self._begin_file()
        self._data += piece

    def end_part(self) -> None:
        if self._file_name and not self._is_file:  # without a name, a browser's file field in which no file was chosen
            self._begin_file()

    def _begin_file(self) -> None:
        if self.name:
            raise MalformedRequestError("the form has several files: send one zip")
        self.name, self._is_file = (self._file_name or DEFAULT_NAME)[:200], True

    def _skip(self, size: int) -> None:
        self._skipped_bytes += size
        if self._skipped_bytes > FORM_OVERHEAD_BYTES:
            raise MalformedRequestError(
                f"the form has more than {FORM_OVERHEAD_BYTES} bytes beside the zip: send the zip with a file name"
            )
