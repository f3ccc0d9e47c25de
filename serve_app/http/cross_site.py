"""ASGI middleware against pages of other sites that use a visitor's browser to reach this service.

A service without API keys trusts whoever reaches its port, and a browser on the same machine reaches it. Two checks
keep other sites out: the Host header (against DNS rebinding) and where a write comes from.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from functools import cache

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import CrossSiteError, ServiceError, UnknownHostError
from serve_app.http.error_forms import app_path, error_response
from serve_app.http.responses import to_problem
from serve_app.http.service import Service

READS = ("GET", "HEAD", "OPTIONS")  # a browser shows a page of another site none of their responses
HEALTH_PATHS = ("/healthz", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready")
HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^:@/\[\]]*))(:[0-9]*)?")
WITHOUT_DOT = re.compile(r"[a-z0-9_-]*")
ANY = "*"
DEFAULT_PORTS = {"http": "80", "https": "443"}


class CrossSiteMiddleware:
    """Refuses unknown hosts (421) and writes that pages of other sites send (403)."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ServiceError as error:
                await error_response(Request(scope), to_problem(error, scope["state"]["id"]))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        config, headers = self._service.config, Headers(scope=scope)
        is_read = scope["method"] in READS
        if not (is_read and app_path(scope) in HEALTH_PATHS):  # load balancers probe under any name
            hosts = headers.getlist("host")
            # A page of another site doesn't know the API key.
            if config.allowed_hosts or not self._service.keys.required:
                check_hosts(hosts, config.allowed_hosts)
        if not is_read:
            check_origin(headers, config.cors_origins)


def check_hosts(hosts: list[str], allowed: tuple[str, ...]) -> None:
    """Raise UnknownHostError (421) for a name that another site's owner could point to this service (DNS rebinding).

    Nobody can do so with an IP address, with a name without a dot, which public DNS does not have (RFC 7085), or with
    this machine's own name. ``allowed`` lists further names.
    """
    for host in hosts:
        name = host_name(host)
        if not _is_ours(name) and not any(_matches(name, pattern.lower()) for pattern in allowed):
            raise UnknownHostError(
                f"header Host: {host!r:.100} is not a name of this service; add the name to `allowed_hosts` in the "
                "Ingress's user_config"
            )


def host_name(host: str) -> str:
    """Return the name or address in a Host header, without its port; the header itself if it is malformed."""
    match = HOST.fullmatch(host.strip().lower())
    return (match["address"] or match["name"].removesuffix(".")) if match else host


def check_origin(headers: Headers, trusted: tuple[str, ...]) -> None:
    """Raise CrossSiteError (403) for a write that a page of another origin sends.

    The rules are those of Go's ``http.CrossOriginProtection``: browsers say where a request comes from in
    ``Sec-Fetch-Site``, and older ones in ``Origin``. Other clients send neither.

    Args:
        headers: Those of the request.
        trusted: Origins that may write, from ``cors_origins``.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if ANY in trusted or origin in trusted or site in ("same-origin", "none"):
        return
    if site is None and (origin is None or _is_same_host(origin, headers.get("host", ""))):
        return
    raise CrossSiteError(
        f"a page of another site sent this request ({f'Origin: {origin!r:.100}' if origin else 'Sec-Fetch-Site'}); to "
        "allow the site, add its origin to `cors_origins` in the Ingress's user_config"
    )


def _is_same_host(origin: str, host: str) -> bool:
    scheme, _, place = origin.partition("://")
    default_port = f":{DEFAULT_PORTS.get(scheme, '')}"
    return place != "" and place.lower().removesuffix(default_port) == host.lower().removesuffix(default_port)


def _is_ours(name: str) -> bool:
    if WITHOUT_DOT.fullmatch(name):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.endswith(".localhost") or name in _own_names()
    return True


@cache
def _own_names() -> tuple[str, ...]:
    name = socket.gethostname().lower()
    return name, f"{name}.local"


def _matches(name: str, pattern: str) -> bool:
    return pattern in (ANY, name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
