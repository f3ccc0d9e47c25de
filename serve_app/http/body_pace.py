"""Bounds how slowly the body of a request may arrive: an average rate, and the request's deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Message, Receive

from serve_app.errors import SlowBodyError


class PacedBody:
    """Receives a body that must not fall behind a rate for longer than a grace period, nor pass a deadline.

    Only the time in which the server waits for the client counts. Bytes that arrive faster than the rate earn no more
    than the grace period back, so a client cannot send most of a body fast and then a byte now and then.

    Args:
        receive: Returns the next message of the request.
        min_bytes_per_s: The rate.
        grace_s: Seconds that the body may fall behind.
        timeout_s: Seconds until the deadline.
        on_bytes: Called with the number of bytes of each message.
    """

    def __init__(
        self,
        receive: Receive,
        min_bytes_per_s: float,
        grace_s: float,
        timeout_s: float,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._receive, self._rate, self._grace_s, self._on_bytes = receive, min_bytes_per_s, grace_s, on_bytes
        self._left_s = grace_s  # how long the client may still send nothing
        self._expires_at = asyncio.get_running_loop().time() + timeout_s
        self._bytes, self._is_complete = 0, False

    async def __call__(self) -> Message:
        """Return the next message.

        Raises:
            SlowBodyError: The body is too slow, or the deadline has passed (408).
        """
        if self._is_complete:  # the next message is the disconnect
            return await self._receive()
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            async with asyncio.timeout(max(0.0, min(self._left_s, self._expires_at - start))):
                message = await self._receive()
        except TimeoutError:
            raise SlowBodyError(self._refusal(loop.time())) from None
        received = len(message.get("body", b""))
        self._bytes += received
        self._left_s = min(self._grace_s, self._left_s - (loop.time() - start) + received / self._rate)
        self._is_complete = not message.get("more_body", False)
        self._on_bytes(received)
        return message

    def _refusal(self, now: float) -> str:
        if now >= self._expires_at:
            return f"the request's deadline passed after {self._bytes} bytes of the body"
        return (
            f"the body arrives too slowly: after {self._bytes} bytes it was {self._grace_s:g} s behind "
            f"{self._rate:g} bytes/s (limits.min_body_bytes_per_s); send it again on a faster connection"
        )
