"""A request whose body arrives within limits of bytes and time, and without its content coding."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from serve_app.errors import MalformedRequestError, SlowBodyError, TooLargeError
from serve_app.http.admission import Permit
from serve_app.http.content_coding import Inflater, read_coding


async def receive_within(receive: Receive, seconds: float, refusal: str) -> Message:
    """Return the next message of a body, or raise SlowBodyError (408) with this text."""
    try:
        async with asyncio.timeout(seconds):
            return await receive()
    except TimeoutError:
        raise SlowBodyError(refusal) from None


class LimitedRequest(Request):
    """A request whose body is bounded, whatever its headers declare."""

    def __init__(self, scope: Scope, receive: Receive, max_body_bytes: int) -> None:
        super().__init__(scope, receive)
        self._max_body_bytes = max_body_bytes

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in pieces, without its content coding.

        Raises:
            TooLargeError: The declared, the received or the inflated length exceeds the limit (413).
            MalformedRequestError: The client disconnected before the end, or the coding is broken (400).
            UnsupportedCodingError: The content coding is not supported (415).
            OverloadedError: Too many bytes of request bodies are in memory (503).
        """
        coding = read_coding(self.headers)
        declared = self.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise TooLargeError.over("the body", int(declared), self._max_body_bytes)
        if coding is None:
            async for chunk in self._received():
                yield chunk
            return
        permit: Permit | None = self.scope["state"].get("permit")
        size = 0
        async for piece in Inflater(coding).inflate(self._received()):
            size += len(piece)
            if size > self._max_body_bytes:
                raise TooLargeError(f"the body inflates to more than {self._max_body_bytes / 2**20:.1f} MB, the limit")
            if permit:
                permit.buffer(len(piece))
            yield piece

    async def _received(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it was sent."""
        size = 0
        try:
            async for chunk in super().stream():
                size += len(chunk)
                if size > self._max_body_bytes:
                    raise TooLargeError.over("the body", size, self._max_body_bytes)
                yield chunk
        except ClientDisconnect:  # an ordinary event that needs no traceback in the log
            raise MalformedRequestError(f"the body ended after {size} bytes, before its end") from None
