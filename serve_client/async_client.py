"""The client for asyncio and Trio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import httpx2

from serve_client.operations import Operations
from serve_client.session import Session
from serve_client.transport import AsyncTransport

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 60.0
MAX_RETRIES = 5


class AsyncClient(Operations):
    """Calls one service; an ``async with`` block closes its connections.

    Args:
        url: The service's address.
        api_key: The API key, where the service needs one.
        timeout: Time for one call with all its repetitions, in seconds.
        max_retries: Most repetitions of a call: after 429, 502, 503 and 504, and after a lost connection. The client
            waits as long as ``Retry-After`` says. Votes are repeated only if the service had not begun.
        headers: Further headers of each request.
        transport: Replaces the network; tests use it.

    Raises:
        ValueError: ``url`` is not an http or https address.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT_S,
        max_retries: int = MAX_RETRIES,
        headers: Mapping[str, str] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        http = httpx2.AsyncClient(transport=transport, **http_options(url, api_key, headers))
        super().__init__(Session(AsyncTransport(http), timeout, max_retries))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()


def http_options(url: str, api_key: str | None, headers: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the options of httpx2's clients for a service."""
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is not the address of a service: it begins with http:// or https://")
    authorization = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": url, "headers": {**authorization, **(headers or {})}}
