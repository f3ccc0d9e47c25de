"""Write an uploaded zip to disk while it arrives, whatever its size: a raw body, or the only file of a form."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from serve_app.config import JobsConfig, MiB
from serve_app.errors import MalformedRequestError, OverloadedError
from serve_app.http.uploads import LimitedRequest, receive_within

RAW_TYPES = ("application/zip", "application/x-zip-compressed", "application/octet-stream")
FORM = "multipart/form-data"
FIELD = "file"
FORM_OVERHEAD_BYTES = 64 * 1024  # boundaries and headers around the file
WRITE_BYTES = MiB  # per write to disk
IDLE_TIMEOUT_S = 30  # longest pause of a client
DEFAULT_NAME = "upload.zip"


async def save_zip(request: Request, path: Path, limits: JobsConfig) -> tuple[str, str]:
    """Write the zip of a request to ``path``.

    Returns:
        Its SHA-256 in hex, and the file name that the client gave.

    Raises:
        MalformedRequestError: The form does not hold exactly one file, or the body is truncated (400).
        SlowBodyError: No byte arrived for IDLE_TIMEOUT_S (408).
        TooLargeError: The body is larger than ``jobs.max_zip_bytes`` (413).
        OverloadedError: The disk is full (503).
    """
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    form = _FormFile(options.get(b"boundary", b"")) if content_type.decode() == FORM else None
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


class _FormFile:
    """Extracts the one file of a form while the form arrives."""

    def __init__(self, boundary: bytes) -> None:
        if not boundary:
            raise MalformedRequestError("the multipart content type names no boundary")
        self.name = ""  # file name that the client gave; known once the part's headers have arrived
        self._is_complete = False
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._data = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_part,
                "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
                "on_end": self._complete,
            },
        )

    async def extract(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the file's bytes."""
        try:
            async for chunk in body:
                self._parser.write(chunk)
                yield bytes(self._data)
                self._data.clear()
            self._parser.finalize()
        except MultipartParseError as error:
            raise MalformedRequestError(f"the multipart body does not parse: {error}") from None
        if not self._is_complete:
            raise MalformedRequestError("the multipart body ends before its closing boundary")
        if not self.name:
            raise MalformedRequestError(f"the form holds no file: send the zip in the field {FIELD!r}")

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _begin_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._disposition = b""
        field = options.get(b"name", b"").decode(errors="replace")
        if field != FIELD or b"filename" not in options:
            raise MalformedRequestError(
                f"form field {field!r:.80}: send one file, with its file name, in the field {FIELD!r}"
            )
        if self.name:
            raise MalformedRequestError(f"the form has several files in {FIELD!r}: send one zip")
        self.name = options[b"filename"].decode(errors="replace")[:200] or DEFAULT_NAME

    def _complete(self) -> None:
        self._is_complete = True
