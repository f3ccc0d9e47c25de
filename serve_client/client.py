"""The client for programs without an event loop: the operations of operations.py, driven by blocking sockets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import httpx2

from serve_client.async_client import DEFAULT_URL, MAX_RETRIES, TIMEOUT_S, http_options
from serve_client.heads import Heads
from serve_client.jobs import Jobs
from serve_client.operations import Operations
from serve_client.session import Session
from serve_client.transport import BlockingTransport, blocking, blocking_iterator, run


class Client:
    """Calls one service; a ``with`` block closes its connections. Threads may share a client.

    Its methods are those of ``AsyncClient``, without ``await``.

    Every method raises ``ProblemError`` if the service responds with an error, and ``NoResponseError`` if it does not
    respond; see serve_client/errors.py. ``timeout`` of a method is in seconds and replaces the client's.

    Args:
        url: The service's address.
        api_key: The API key, where the service needs one.
        timeout: Time for one call with all its repetitions, in seconds.
        max_retries: Most repetitions of a call: after 429, 502, 503 and 504, and after a lost connection. The client
            waits as long as ``Retry-After`` says. Votes are repeated only if the service had not begun.
        headers: Further headers of each request.
        transport: Replaces the network; tests use it.

    Attributes:
        heads: Heads, the classes that you teach.
        jobs: Batch jobs.

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
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        http = httpx2.Client(transport=transport, **http_options(url, api_key, headers))
        self._operations = Operations(Session(BlockingTransport(http), timeout, max_retries))
        self.heads = Heads(self._operations.heads)
        self.jobs = Jobs(self._operations.jobs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        run(self._operations.aclose())

    classify = blocking(Operations.classify)
    classify_many = blocking_iterator(Operations.classify_many)
    embed = blocking(Operations.embed)
    embed_many = blocking_iterator(Operations.embed_many)
    feedback = blocking(Operations.feedback)
    models = blocking(Operations.models)
    labels = blocking(Operations.labels)
    status = blocking(Operations.status)
    usage = blocking(Operations.usage)
    ready = blocking(Operations.ready)
