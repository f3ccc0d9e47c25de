"""ASGI middleware that ends responses whose clients take them too slowly.

HAProxy takes the first 1 to 2 MB of a response at once and ends clients that take nothing. A client that takes a
little again and again would keep a large response, and its place at HAProxy, for hours.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

from starlette.types import ASGIApp, Message, Receive, Scope, Send

GRACE_S = 30.0  # time in which a client need not take anything
MIN_BYTES_PER_S = 64 * 1024
PIECE_BYTES = 64 * 1024  # uvicorn waits for the client between two pieces, never within one
log = logging.getLogger("serve_app")


class SlowReaderError(ConnectionError):
    """The client takes the response too slowly."""


class SlowReaderMiddleware:
    """Bounds the time that a response waits for its client: `grace_s`, and a second per `min_bytes_per_s` taken.

    Time in which the service computes further results does not count.
    """

    def __init__(self, app: ASGIApp, grace_s: float = GRACE_S, min_bytes_per_s: float = MIN_BYTES_PER_S) -> None:
        self._app, self._grace_s, self._min_bytes_per_s = app, grace_s, min_bytes_per_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        loop, allowed_s = asyncio.get_running_loop(), self._grace_s

        async def send_in_time(message: Message) -> None:
            nonlocal allowed_s
            for piece in _pieces(message):
                before_s = loop.time()
                try:
                    async with asyncio.timeout(allowed_s):
                        await send(piece)
                except TimeoutError:
                    log.warning("%.200s: the client takes the response too slowly; connection closed", scope["path"])
                    abort_connection(send)
                    return
                allowed_s += len(piece.get("body", b"")) / self._min_bytes_per_s - (loop.time() - before_s)

        await self._app(scope, receive, send_in_time)


def abort_connection(send: Send) -> None:
    """Close the connection of a request with its unsent bytes, so the app sees a client that has disconnected.

    ASGI has no message for this, so it takes the connection from uvicorn. Returning from the app would make uvicorn
    wait until the client has read what was sent.

    Raises:
        SlowReaderError: The server is not uvicorn; the exception ends the response.
    """
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        raise SlowReaderError("the client takes the response too slowly")
    # Without lingering, closing resets the connection: HAProxy sees that at once, an end only behind the unread bytes.
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _pieces(message: Message) -> list[Message]:
    """Return the messages that send the same in pieces of at most ``PIECE_BYTES``."""
    body = message.get("body", b"")
    if len(body) <= PIECE_BYTES:
        return [message]
    starts = range(0, len(body), PIECE_BYTES)
    pieces: list[Message] = [
        {**message, "body": body[start : start + PIECE_BYTES], "more_body": True} for start in starts
    ]
    pieces[-1]["more_body"] = message.get("more_body", False)
    return pieces
