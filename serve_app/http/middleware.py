"""ASGI middleware that every request passes: request id, CORS, API key, admission."""

from __future__ import annotations

import re
import time

from starlette import status
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware as StarletteCorsMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.deadline import Deadline, read_deadline
from serve_app.errors import ServiceError, UnauthorizedError
from serve_app.http.accounts import Accounts, Charge
from serve_app.http.admission import AdmissionController, Permit
from serve_app.http.body_pace import PacedBody
from serve_app.http.cross_site import HEALTH_PATHS
from serve_app.http.error_forms import app_path, error_response
from serve_app.http.jobs.uploads import IDLE_TIMEOUT_S
from serve_app.http.request_headers import has_body, new_request_id, valid_request_id
from serve_app.http.responses import to_problem
from serve_app.http.service import Service
from serve_app.observability import tracing
from serve_app.observability.stats import Stats
from serve_app.proxy_headers import BUSY_US, CLIENT_ADDRESS, DEADLINE_MS

# GET requests that need no API key: health and documentation. Everything else needs one, whatever its method and path.
PUBLIC_PATHS = ("/", *HEALTH_PATHS, "/docs", "/openapi.json")
PUBLIC_FOLDER = "/static-offline-docs/"
# Job uploads go to disk as they arrive and have limits of their own, so admission control does not count them.
JOBS_PATH = "/v1/jobs"
CLASSIFY_METHODS = ("POST", "PUT", "PATCH")  # each costs its caller a token, also without a body
MAX_LOGGED_PATH = 200  # characters
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
        request_id = valid_request_id(headers.getlist("x-request-id"))  # Ray Serve sets it and returns it
        state = scope.setdefault("state", {})
        state["id"], state["start"] = request_id or new_request_id(), time.perf_counter()
        state["model"] = next((card.ref for card in self._service.router.cards().values()), None)
        path = app_path(scope)[:MAX_LOGGED_PATH]
        span = tracing.start_span(path, state["id"], headers) if scope["method"] in CLASSIFY_METHODS else None
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
                self._app,
                origins,
                ("GET", "POST", "PUT", "PATCH", "DELETE"),
                ("*",),
                expose_headers=("*",),
                max_age=600,
            )
        await (self._cors_app if origins else self._app)(scope, receive, send)


class AdmissionMiddleware:
    """Checks the API key and the caller's limits, and admits a body if its images can be classified in time.

    A refused request is refused before its body is read. Responses tell HAProxy how fast this replica works.
    """

    def __init__(
        self, app: ASGIApp, service: Service, admission: AdmissionController, accounts: Accounts, stats: Stats
    ) -> None:
        self._app, self._service, self._admission, self._stats = app, service, admission, stats
        self._accounts = accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "websocket":  # no route takes one, so none is let past the checks below
            await send({"type": "websocket.close", "code": status.WS_1008_POLICY_VIOLATION})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            charge = self._authorize(scope)
            permit = self._admit(scope, charge) if charge else None
        except ServiceError as error:
            self._stats.add_error(error)
            response = error_response(Request(scope), to_problem(error, scope["state"]["id"]))
            if isinstance(error, UnauthorizedError):
                response.headers["WWW-Authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        if charge is None:
            await self._app(scope, receive, send)
            return
        scope["state"]["charge"] = charge
        with charge:
            if permit is None:
                await self._app(scope, self._paced_upload(receive, charge), send)
                return
            with permit:
                scope["state"]["permit"] = permit
                await self._app(scope, self._paced_body(receive, charge, permit), self._reporting(send))

    def _authorize(self, scope: Scope) -> Charge | None:
        """Check the API key; return what the request costs its caller, None if it has no body and is no POST or PUT.

        Raises:
            UnauthorizedError: The API key is missing or unknown (401).
            RateLimitedError: The caller has reached a limit (429).
        """
        method, path = scope["method"], app_path(scope)
        if method == "GET" and (path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER)):
            return None
        caller = scope["state"]["caller"] = self._service.keys.caller(Headers(scope=scope))
        if method not in CLASSIFY_METHODS and not has_body(scope["headers"]):
            return None
        account = self._accounts.of(caller)
        account.check()
        return Charge(account)

    def _admit(self, scope: Scope, charge: Charge) -> Permit | None:
        """Return a permit; None for job uploads, which bypass admission control."""
        path = app_path(scope)
        if (scope["method"], path) == ("POST", JOBS_PATH):
            return None
        headers, limits = Headers(scope=scope), self._service.config.limits
        declared = headers.get("content-length", "")
        body_bytes = int(declared) if re.fullmatch("[0-9]{1,18}", declared) else 0
        return self._admission.admit(
            min(body_bytes, limits.max_body_bytes),  # a longer body is refused when it is read
            # Below the jobs' path HeaderGuard switches Ray's timeout off, with a header that is no deadline.
            Deadline(limits.deadline_s)
            if path.startswith(f"{JOBS_PATH}/")
            else read_deadline(headers, limits.deadline_s),
            charge,
            scope["state"]["caller"] or headers.get(CLIENT_ADDRESS),
        )

    def _reporting(self, send: Send) -> Send:
        """Return ``send`` with the headers from which HAProxy tells how long a request waits."""

        async def send_with_rate(message: Message) -> None:
            if message["type"] == "http.response.start" and (request_s := self._admission.busy_request_s()):
                headers = MutableHeaders(scope=message)
                headers[BUSY_US] = str(max(1, round(request_s * 1e6)))
                headers[DEADLINE_MS] = str(round(self._service.config.limits.deadline_s * 1000))
            await send(message)

        return send_with_rate

    def _paced_body(self, receive: Receive, charge: Charge, permit: Permit) -> PacedBody:
        def count(received: int) -> None:
            charge.take_bytes(received)
            permit.receive(received)

        limits = self._service.config.limits
        return PacedBody(receive, limits.min_body_bytes_per_s, limits.body_grace_s, permit.deadline.left_s(), count)

    def _paced_upload(self, receive: Receive, charge: Charge) -> PacedBody:
        limits, jobs = self._service.config.limits, self._service.config.jobs
        timeout_s = jobs.max_upload_s if jobs else limits.deadline_s
        return PacedBody(receive, limits.min_body_bytes_per_s, IDLE_TIMEOUT_S, timeout_s, charge.take_bytes)
