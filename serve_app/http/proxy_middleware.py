"""ASGI middleware that runs around Ray Serve's own application, before Ray reads a request.

``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` in configs/ray.env names ``proxy_middleware`` to Ray Serve.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.http.middleware import JOBS_PATH
from serve_app.http.oip import app_path
from serve_app.http.request_headers import NO_RAY_TIMEOUT, NO_READ_AHEAD, has_body, headers_for_ray

MIN_READ_BYTES_PER_S = 32 * 1024  # slowest client of a long response
READ_GRACE_S = 30.0  # pause of such a client
log = logging.getLogger("serve_app")


class HeaderGuard:
    """Hides headers that steer Ray Serve from it, and keeps Ray from buffering bodies that nothing counts.

    Ray reads a body into memory as fast as it arrives, to notice a disconnect early. Admission control counts the bytes
    of a POST. For job uploads, which can be 500 MB, and for bodies of other methods, reading ahead is switched off.
    Ray's own timeout is too short for uploads and results of jobs; ``jobs.max_upload_s`` and ``SlowReaderGuard`` bound
    them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            headers, path = headers_for_ray(scope["headers"]), app_path(scope).rstrip("/")
            is_job_upload = scope["method"] == "POST" and path == JOBS_PATH
            if is_job_upload or (scope["method"] != "POST" and has_body(headers)):
                headers.append(NO_READ_AHEAD)
            if is_job_upload or path.startswith(f"{JOBS_PATH}/"):
                headers.append(NO_RAY_TIMEOUT)
            scope["headers"] = headers
        await self._app(scope, receive, send)


class BufferedHeadMiddleware:
    """Sends the head of a response together with the first bytes of its body.

    HAProxy repeats a request on another replica when a replica is killed, but not after the head of a response has
    arrived. Ray takes a millisecond between head and body; a kill in that time would cost the client its response.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        head: Message | None = None

        async def send_with_head(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start":
                head = message
                return
            if head is not None:
                first, head = head, None
                await send(first)
            await send(message)

        await self._app(scope, receive, send_with_head)


class SlowReaderGuard:
    """Ends a response whose client stops reading.

    The server waits with the next piece of a response until the client has read the piece before. Without a bound, a
    client that reads nothing would hold a slot of the replica for ever.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        unread = 0

        async def send_in_time(message: Message) -> None:
            nonlocal unread
            try:
                async with asyncio.timeout(READ_GRACE_S + unread / MIN_READ_BYTES_PER_S):
                    await send(message)
            except TimeoutError:
                log.warning("%.200s: the client has stopped reading the response; connection closed", scope["path"])
                abort_connection(send)
            unread = len(message.get("body", b""))

        await self._app(scope, receive, send_in_time)


def abort_connection(send: Send) -> None:
    """Close the connection of a request with its unsent bytes, so the app sees a client that has disconnected.

    ASGI has no message for this, so it takes the connection from uvicorn. Returning from the app would make uvicorn
    wait until the client has read what was sent.

    Raises:
        ConnectionAbortedError: The server is not uvicorn; the exception ends the response.
    """
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        raise ConnectionAbortedError("the client has stopped reading the response")
    # Without lingering, closing resets the connection: HAProxy sees that at once, an end only behind the unread bytes.
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def proxy_middleware() -> list[Middleware]:
    """Return the middleware that Ray Serve puts around its application; the last one is the outermost."""
    return [Middleware(HeaderGuard), Middleware(BufferedHeadMiddleware), Middleware(SlowReaderGuard)]
