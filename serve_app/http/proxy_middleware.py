"""ASGI middleware that runs around Ray Serve's own application, before Ray reads a request.

``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` in configs/ray.env names ``proxy_middleware`` to Ray Serve.
"""

from __future__ import annotations

import uuid

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import InvalidParameterError
from serve_app.http.middleware import JOBS_PATH
from serve_app.http.oip import app_path, error_response
from serve_app.http.responses import to_problem
from serve_app.http.slow_readers import SlowReaderMiddleware

# Headers that Ray Serve decodes as UTF-8 before the request reaches the app; other bytes would give 500.
DECODED_BY_RAY = (
    *(b"x-request-id", b"x-session-id", b"x-request-timeout-seconds", b"x-request-disconnect-disabled"),
    *(b"serve_multiplexed_model_id", b"serve-multiplexed-model-id", b"traceparent", b"tracestate"),
)
NO_READ_AHEAD = (b"x-request-disconnect-disabled", b"?1")


class HeaderGuard:
    """Refuses headers that Ray Serve cannot decode, and keeps Ray from buffering job uploads.

    Ray reads a body into memory as fast as it arrives, to notice a disconnect early. Job uploads can be 500 MB, so for
    them that is switched off; they arrive as fast as they are written to disk.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                if name in DECODED_BY_RAY and value.decode(errors="ignore").encode() != value:
                    error = InvalidParameterError(f"header {name.decode()}: its value is not UTF-8")
                    problem = to_problem(error, f"req_{uuid.uuid4().hex}")
                    await error_response(Request(scope), problem)(scope, receive, send)
                    return
            if scope["method"] == "POST" and app_path(scope) == JOBS_PATH:
                scope["headers"] = [*scope["headers"], NO_READ_AHEAD]
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


def proxy_middleware() -> list[Middleware]:
    """Return the middleware that Ray Serve puts around its application."""
    return [Middleware(SlowReaderMiddleware), Middleware(HeaderGuard), Middleware(BufferedHeadMiddleware)]
