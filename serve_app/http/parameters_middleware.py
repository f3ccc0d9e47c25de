"""ASGI middleware around the routes: bounds the query string, and names unknown parameters in a response header."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import QueryTooLongError
from serve_app.http.error_forms import error_response
from serve_app.http.responses import to_problem

HEADER = "X-Warnings"
MAX_HEADER_CHARS = 1000
MAX_QUERY_BYTES = 8192  # 4096 parameters, which take 4 ms to parse


class ParametersMiddleware:
    """Bounds the query string before it is parsed, and puts the warnings of a request into a response header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (size := len(scope["query_string"])) > MAX_QUERY_BYTES:
            error = QueryTooLongError(f"the query string has {size:,} bytes; the limit is {MAX_QUERY_BYTES:,}")
            problem = to_problem(error, scope["state"]["id"])
            await error_response(Request(scope), problem)(scope, receive, send)
            return
        warnings: list[str] = scope["state"].setdefault("warnings", [])

        async def send_with_warnings(message: Message) -> None:
            if warnings and message["type"] == "http.response.start":
                text = "; ".join(warnings).encode("ascii", "backslashreplace").decode()
                MutableHeaders(scope=message)[HEADER] = text[:MAX_HEADER_CHARS]
            await send(message)

        await self._app(scope, receive, send_with_warnings)
