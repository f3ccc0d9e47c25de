"""ASGI middleware that gives equal requests one form before anything looks at them: HEAD, and a slash at the end."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.http.error_forms import app_path


class CanonicalMiddleware:
    """Answers HEAD as GET without a body, and a path with slashes at its end as the path without them.

    A redirect to the other path would make a client send its body twice.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = app_path(scope)
        scope["path"] = scope["path"].removesuffix(path) + (path.rstrip("/") or "/")
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_without_body)
