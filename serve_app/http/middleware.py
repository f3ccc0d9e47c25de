"""ASGI middleware that every request passes: request id, CORS, API key, admission."""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware as StarletteCorsMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.deadline import read_deadline
from serve_app.errors import ServiceError, UnauthorizedError
from serve_app.http.admission import AdmissionController, Permit
from serve_app.http.oip import app_path, error_response
from serve_app.http.responses import to_problem
from serve_app.http.service import Service
from serve_app.http.uploads import receive_within
from serve_app.observability import tracing
from serve_app.observability.stats import Stats

# Paths that need no API key: health and documentation.
PUBLIC_PATHS = ("/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/redoc", "/openapi.json")
PUBLIC_FOLDER = "/static-offline-docs/"
# Job uploads go to disk as they arrive and have limits of their own, so admission control does not count them.
JOBS_PATH = "/v1/jobs"
SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}


class RequestIdMiddleware:
    """Gives each request an id, a start time and a trace span, and each response the headers that report them."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id")  # Ray Serve's proxy sets it and returns it
        state = scope.setdefault("state", {})
        state["id"], state["start"] = request_id or f"req_{uuid.uuid4().hex}", time.perf_counter()
        state["model"] = next((card.ref for card in self._service.router.cards().values()), None)
        span = tracing.start_span(app_path(scope), state["id"], headers) if scope["method"] == "POST" else None
        state["traceparent"] = span and span.traceparent
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response_headers = MutableHeaders(scope=message)
                if state["model"]:
                    response_headers["X-Model-Version"] = state["model"].version
                for name, value in SECURITY_HEADERS.items():
                    response_headers.setdefault(name, value)
                if not request_id:
                    response_headers["X-Request-ID"] = state["id"]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            if span:
                span.end(status)


class CorsMiddleware:
    """Lets pages of the sites in the setting ``cors_origins`` call from a browser; by default of none."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._origins: tuple[str, ...] = ()
        self._cors_app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        origins = self._service.config.cors_origins
        if self._origins != origins:
            self._origins = origins
            self._cors_app = StarletteCorsMiddleware(
                self._app, origins, ("GET", "POST", "DELETE"), ("*",), expose_headers=("*",), max_age=600
            )
        await (self._cors_app if origins else self._app)(scope, receive, send)


class AdmissionMiddleware:
    """Checks the API key, and admits a request with a body if its images can be classified in time.

    A refused request is refused before its body is read.
    """

    def __init__(self, app: ASGIApp, service: Service, admission: AdmissionController, stats: Stats) -> None:
        self._app, self._service, self._admission, self._stats = app, service, admission, stats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        try:
            permit = self._admit(scope) if scope["type"] == "http" else None
        except ServiceError as error:
            self._stats.add_error(error)
            response = error_response(Request(scope), to_problem(error, scope["state"]["id"]))
            if isinstance(error, UnauthorizedError):
                response.headers["WWW-Authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        if permit is None:
            await self._app(scope, receive, send)
            return
        with permit:
            scope["state"]["permit"] = permit
            await self._app(scope, _counted(receive, permit), send)

    def _admit(self, scope: Scope) -> Permit | None:
        """Return a permit; None for requests that bypass admission control: GET, public paths and job uploads."""
        path = app_path(scope)
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER):
            return None
        headers = Headers(scope=scope)
        caller = scope["state"]["caller"] = self._service.keys.caller(headers)
        if scope["method"] != "POST":
            return None
        bucket = self._service.keys.bucket(caller)
        if path == JOBS_PATH:
            if bucket:
                bucket.check()
            return None
        limits, declared = self._service.config.limits, headers.get("content-length", "")
        body_bytes = int(declared) if re.fullmatch("[0-9]{1,18}", declared) else 0
        return self._admission.admit(
            min(body_bytes, limits.max_body_bytes),  # a longer body is refused when it is read
            read_deadline(headers, limits.deadline_s),
            bucket,
        )


def _counted(receive: Receive, permit: Permit) -> Receive:
    """Count the bytes of the body, and wait for them until the request's deadline."""
    complete, size = False, 0

    async def receive_in_time() -> Message:
        nonlocal complete, size
        if complete:  # the next message is the disconnect
            return await receive()
        refusal = f"the request's deadline passed after {size} bytes of the body"
        message = await receive_within(receive, permit.deadline.left_s(), refusal)
        complete = not message.get("more_body", False)
        received = len(message.get("body", b""))
        size += received
        permit.receive(received)
        return message

    return receive_in_time
