"""A zip on its way to disk: in pieces, however large it is, raw or as the only file of a form."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request
from starlette.types import Message, Receive

from serve_app.config import JobsConfig, MiB
from serve_app.errors import MalformedRequestError, OverloadedError, SlowBodyError
from serve_app.http.uploads import LimitedRequest

RAW_TYPES = ("application/zip", "application/x-zip-compressed", "application/octet-stream")
FORM = "multipart/form-data"
FIELD = "file"
FORM_BYTES = 64 * 1024  # what a form may have besides the file
PIECE_BYTES = MiB  # written at a time
IDLE_S = 30  # longest pause of a client


async def save_zip(request: Request, path: Path, limits: JobsConfig) -> tuple[str, str]:
    """Write the zip of a request to a file.

    Returns:
        Its sha256, and the name that the client gave it.

    Raises:
        MalformedRequestError: The body is no form with one file, or ends before its end (400).
        SlowBodyError: Nothing came for IDLE_S (408).
        TooLargeError: More bytes than the limit (413).
        OverloadedError: The disk is full (503).
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    is_form = kind.decode() == FORM
    most = limits.max_zip_bytes + (FORM_BYTES if is_form else 0)
    limited = LimitedRequest(request.scope, _in_time(request.receive), most)
    digest = hashlib.sha256()
    try:
        with path.open("wb") as file:
            if is_form:
                form = _Form(options.get(b"boundary", b""))
                pieces = form.file(limited.stream())
            else:
                pieces = limited.stream()
            await _write(pieces, file, digest.update)
    except OSError as error:
        raise OverloadedError(f"the zip cannot be kept now ({error.strerror}); try again later", 60) from error
    return digest.hexdigest(), form.name if is_form else "upload.zip"


async def _write(pieces: AsyncIterator[bytes], file: BinaryIO, update: Callable[[bytes], None]) -> None:
    waiting = bytearray()

    def flush(piece: bytes) -> None:
        file.write(piece)
        update(piece)

    async for piece in pieces:
        waiting += piece
        if len(waiting) >= PIECE_BYTES:
            await asyncio.to_thread(flush, bytes(waiting))
            waiting.clear()
    await asyncio.to_thread(flush, bytes(waiting))
    await asyncio.to_thread(os.fsync, file.fileno())


class _Form:
    """The one file of a form, taken out while the form arrives."""

    def __init__(self, boundary: bytes) -> None:
        if not boundary:
            raise MalformedRequestError("the multipart content type names no boundary")
        self.name = "upload.zip"
        self._found = self._ended = False
        self._header, self._value, self._headers = b"", b"", dict[bytes, bytes]()
        self._data = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_end": self._end,
            },
        )

    async def file(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the file's bytes."""
        try:
            async for piece in body:
                self._parser.write(piece)
                if self._data:
                    yield bytes(self._data)
                    self._data.clear()
            self._parser.finalize()
        except MultipartParseError as error:
            raise MalformedRequestError(f"the multipart body does not parse: {error}") from None
        if not self._ended:
            raise MalformedRequestError("the multipart body ends before its closing boundary")
        if not self._found:
            raise MalformedRequestError(f"the form holds no file: use the field {FIELD!r}")

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        field = options.get(b"name", b"").decode(errors="replace")
        if field != FIELD or b"filename" not in options:
            raise MalformedRequestError(f"form field {field!r:.80}: a job takes one file, in the field {FIELD!r}")
        if self._found:
            raise MalformedRequestError(f"the form has several files in {FIELD!r}: a job takes one zip")
        self._found = True
        self.name = options[b"filename"].decode(errors="replace")[:200] or self.name

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _end(self) -> None:
        self._ended = True


def _in_time(receive: Receive) -> Receive:
    async def receive_in_time() -> Message:
        try:
            async with asyncio.timeout(IDLE_S):
                return await receive()
        except TimeoutError:
            raise SlowBodyError(f"nothing of the body came for {IDLE_S} s") from None

    return receive_in_time
