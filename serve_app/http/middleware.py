"""Stage 1/3 · what every request passes first: its id, who sends it, until when, and whether it may come in now."""

from __future__ import annotations

import asyncio
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.deadline import read_deadline
from serve_app.errors import InvalidParameterError, ServiceError, SlowBodyError, UnauthorizedError
from serve_app.http.admission import Admission, Permit
from serve_app.http.oip import path_of, respond
from serve_app.http.responses import to_problem
from serve_app.http.service import Service
from serve_app.observability import tracing
from serve_app.observability.stats import Stats

# Open to callers without a key: whether it runs, and what it is.
OPEN_PATHS = ("/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/redoc", "/openapi.json")
# Bodies that go to disk as they come, within limits of their own: they are never in memory, and take longer.
STREAMED = "/v1/jobs"
OPEN_FOLDER = "/static-offline-docs/"
# What Ray Serve reads of a request before we see it, as UTF-8; it answers anything else with 500.
READ_BY_RAY = (
    *(b"x-request-id", b"x-session-id", b"x-request-timeout-seconds", b"x-request-disconnect-disabled"),
    *(b"serve_multiplexed_model_id", b"serve-multiplexed-model-id", b"traceparent", b"tracestate"),
)
NO_READING_AHEAD = (b"x-request-disconnect-disabled", b"?1")
SAFE = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}


class HeaderGuard:
    """ASGI middleware: refuses headers that Ray Serve could not read. Stands before Ray, see ``outermost``.

    Ray reads a body as fast as it comes, into memory, to learn soon that a client has gone. From large ones it is kept:
    they come as fast as we write them to disk.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap Ray Serve's app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                if name in READ_BY_RAY and not _is_utf8(value):
                    error = InvalidParameterError(f"header {name.decode()}: not UTF-8")
                    problem = to_problem(error, f"req_{uuid.uuid4().hex}")
                    await respond(Request(scope), problem)(scope, receive, send)
                    return
            if scope["method"] == "POST" and path_of(scope) == STREAMED:
                scope["headers"] = [*scope["headers"], NO_READING_AHEAD]
        await self._app(scope, receive, send)


class BufferedHeadMiddleware:
    """ASGI middleware: sends the head of a response with the beginning of its body. Stands before Ray, too.

    Between the two Ray takes a millisecond. HAProxy asks another replica when one is killed over a request, but not
    once it has the head of an answer: that client would get nothing more.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap Ray Serve's app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        head: Message | None = None

        async def send_together(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start":
                head = message
                return
            if head is not None:
                first, head = head, None
                await send(first)
            await send(message)

        await self._app(scope, receive, send_together)


def outermost() -> list[Middleware]:
    """What Ray Serve puts around itself, named in configs/ray.env."""
    return [Middleware(HeaderGuard), Middleware(BufferedHeadMiddleware)]


class RequestIdMiddleware:
    """ASGI middleware: gives each request its id and start time, and each response the headers that say so."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Wrap an app that answers for this service."""
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Ray Serve's proxy numbers requests and answers with the number; without it we do.
        numbered = Headers(scope=scope).get("x-request-id")
        state = scope.setdefault("state", {})
        state["id"], state["start"] = numbered or f"req_{uuid.uuid4().hex}", time.perf_counter()
        state["model"] = next((card.ref for card in self._service.cards().values()), None)
        span = None
        if scope["method"] == "POST":
            span = tracing.begin(path_of(scope), state["id"], Headers(scope=scope))
        state["parent"] = span and span.parent
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                if state["model"]:
                    headers["X-Model-Version"] = state["model"].version
                for name, value in SAFE.items():
                    headers.setdefault(name, value)
                if not numbered:
                    headers["X-Request-ID"] = state["id"]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            if span:
                span.end(status)


class CorsMiddleware:
    """ASGI middleware: lets pages of the sites that are named now call from a browser; of none by default."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Wrap an app that serves this."""
        self._app, self._service = app, service
        self._origins: tuple[str, ...] = ()
        self._sharing = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if self._origins != self._service.cors_origins:
            self._origins = self._service.cors_origins
            self._sharing = CORSMiddleware(
                self._app, self._origins, ("GET", "POST", "DELETE"), ("*",), expose_headers=("*",), max_age=600
            )
        await (self._sharing if self._origins else self._app)(scope, receive, send)


class AdmissionMiddleware:
    """ASGI middleware: asks who calls, and lets a request with a body in if it can be answered in time.

    Whatever is refused is refused before its body is read.
    """

    def __init__(self, app: ASGIApp, service: Service, admission: Admission, stats: Stats) -> None:
        """Wrap an app that serves this."""
        self._app, self._service, self._admission, self._stats = app, service, admission, stats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            admitted = self._enter(scope)
        except ServiceError as error:
            self._stats.failed(error)
            refused = respond(Request(scope), to_problem(error, scope["state"]["id"]))
            if isinstance(error, UnauthorizedError):
                refused.headers["WWW-Authenticate"] = "Bearer"
            await refused(scope, receive, send)
            return
        if admitted is None:
            await self._app(scope, receive, send)
            return
        with admitted:
            scope["state"]["admitted"] = admitted
            await self._app(scope, _counting(receive, admitted), send)

    def _enter(self, scope: Scope) -> Permit | None:
        """Let a request in; None for one that only asks (GET), which costs little and always has room."""
        path = path_of(scope)
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return None
        headers = Headers(scope=scope)
        caller = scope["state"]["caller"] = self._service.keys.caller(headers)
        if scope["method"] != "POST":
            return None
        bucket = self._service.keys.bucket(caller)
        if path == STREAMED:
            if bucket:
                bucket.check()
            return None
        limits, declared = self._service.limits, headers.get("content-length", "")
        body_bytes = int(declared) if re.fullmatch("[0-9]{1,18}", declared) else 0
        return self._admission.admit(
            min(body_bytes, limits.max_body_bytes),  # whoever reads a longer one refuses it, and says why
            read_deadline(headers, limits.deadline_s),
            bucket,
        )


def _counting(receive: Receive, admitted: Permit) -> Receive:
    """The same body, counted, and not awaited longer than its client wants."""
    complete, size = False, 0

    async def receive_in_time() -> Message:
        nonlocal complete, size
        if complete:  # what comes now is the end of the connection
            return await receive()
        try:
            async with asyncio.timeout(admitted.deadline.left_s()):
                message = await receive()
        except TimeoutError:
            raise SlowBodyError(f"only {size} bytes of the body came in time") from None
        complete = not message.get("more_body", False)
        received = len(message.get("body", b""))
        size += received
        admitted.received(received)
        return message

    return receive_in_time


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
