"""ASGI middleware that runs around Ray Serve's own application, before Ray reads a request.

``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` in configs/ray.env names ``proxy_middleware`` to Ray Serve.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.http.error_forms import app_path
from serve_app.http.middleware import JOBS_PATH
from serve_app.http.request_headers import NO_RAY_TIMEOUT, NO_READ_AHEAD, has_body, headers_for_ray
from serve_app.http.slow_readers import SlowReaderMiddleware


class HeaderGuard:
    """Hides headers that steer Ray Serve from it, and keeps Ray from buffering bodies that nothing counts.

    Ray reads a body into memory as fast as it arrives, to notice a disconnect early. Admission control counts the bytes
    of a POST. For job uploads, which can be 500 MB, and for bodies of other methods, reading ahead is switched off.
    Ray's own timeout is too short for uploads and results of jobs; ``jobs.max_upload_s`` and
    ``SlowReaderMiddleware`` bound them.
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


def proxy_middleware() -> list[Middleware]:
    """Return the middleware that Ray Serve puts around its application; the last one is the outermost."""
    return [Middleware(HeaderGuard), Middleware(BufferedHeadMiddleware), Middleware(SlowReaderMiddleware)]
