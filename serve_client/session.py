"""Sends requests: repeats those that the service refuses for a while, and raises its errors as exceptions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, TypeVar

import httpx2

from serve_client.errors import (
    NoResponseError,
    Problem,
    ProblemError,
    ResponseTimeoutError,
    ServeError,
    UnexpectedResponseError,
    UnreadableImageError,
)
from serve_client.images import EncodedImage, ImageInput, encode, is_address
from serve_client.retries import REFUSED, UNCERTAIN, Deadline, Retries, parse_retry_after
from serve_client.transport import Transport

T = TypeVar("T")
MAX_CONNECT_S = 10.0
DEADLINE_HEADER = "X-Request-Timeout-Ms"
DEADLINE_SHARE = 0.95  # of the time left: the service gives up first, so that its answer still arrives
NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
QUOTED_CHARS = 200  # of an error response that is not a problem


@dataclass(frozen=True)
class Request:
    """One request of the API.

    Attributes:
        method: HTTP method.
        path: Path below the service's address.
        options: ``params``, ``headers``, ``content``, ``data``, ``files`` or ``json``, as httpx2 names them.
        upload: A file whose rest is the body; it is rewound for each attempt.
        repeatable: Whether the service may carry it out twice.
    """

    method: str
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)
    upload: IO[bytes] | None = None
    repeatable: bool = True


@dataclass(frozen=True)
class Reply:
    """A complete response without an error."""

    body: bytes = field(repr=False)
    headers: Mapping[str, str]

    def json(self) -> Any:
        """Return the parsed body, or raise UnexpectedResponseError."""
        return parse_json(self.body)

    def member(self, name: str) -> Any:
        """Return one member of the parsed body, or raise UnexpectedResponseError."""
        body = self.json()
        if isinstance(body, Mapping) and name in body:
            return body[name]
        raise UnexpectedResponseError(f"the response lacks {name!r}: {self.body[:QUOTED_CHARS]!r}")


class Session:
    """Sends requests over a transport.

    Args:
        transport: Reaches the service.
        timeout_s: Time for one call, with all its repetitions.
        max_retries: Most repetitions of a call.
    """

    def __init__(self, transport: Transport, timeout_s: float, max_retries: int) -> None:
        self.transport, self._timeout_s, self._max_retries = transport, timeout_s, max_retries

    def retries(
        self, timeout_s: float | None = None, repeatable: bool = True, max_retries: int | None = None
    ) -> Retries:
        """Start the time of a call; None stands for the session's own limits."""
        deadline = Deadline(self._timeout_s if timeout_s is None else timeout_s)
        return Retries(deadline, self._max_retries if max_retries is None else max_retries, repeatable)

    async def send(self, request: Request, timeout_s: float | None = None, max_retries: int | None = None) -> Reply:
        """Return the complete response, after as many attempts as it takes.

        Raises:
            ProblemError: The service refused it for good, or until the deadline.
            NoResponseError: No attempt got a response.
        """

        async def attempt(deadline: Deadline) -> Reply:
            response = await self._open(request, deadline)
            return Reply(await self._read(response, deadline), response.headers)

        return await self._repeat(attempt, self.retries(timeout_s, request.repeatable, max_retries))

    async def pieces(
        self, request: Request, retries: Retries, started: Callable[[Mapping[str, str]], None] = lambda headers: None
    ) -> AsyncGenerator[bytes, None]:
        """Yield a response's body as it arrives; only its start is repeated. ``started`` gets its headers."""
        response = await self._repeat(lambda deadline: self._open(request, deadline), retries)
        try:
            started(response.headers)
            with _errors():
                async with aclosing(self.transport.chunks(response)) as chunks:
                    async for chunk in chunks:
                        yield chunk
        finally:
            await self.transport.close(response)

    async def encode(self, image: ImageInput, timeout_s: float | None = None) -> EncodedImage:
        """Read, fetch or encode an image, or raise UnreadableImageError."""
        if isinstance(image, str) and is_address(image):
            return await self._fetch(image, Deadline(self._timeout_s if timeout_s is None else timeout_s))
        return await self.transport.call(lambda: encode(image))

    async def _fetch(self, address: str, deadline: Deadline) -> EncodedImage:
        try:
            with _errors():
                response = await self.transport.fetch(address, deadline.left_s())
            body = await self._read(response, deadline)
        except (ServeError, httpx2.InvalidURL) as error:
            raise UnreadableImageError(f"{address}: {error}") from error
        if not response.is_success:
            raise UnreadableImageError(f"{address}: status {response.status_code} {response.reason_phrase}")
        return EncodedImage(body, address)

    async def _repeat(self, attempt: Callable[[Deadline], Awaitable[T]], retries: Retries) -> T:
        while True:
            try:
                return await attempt(retries.deadline)
            except (ProblemError, NoResponseError) as error:
                pause_s = retries.pause_s(error)
            await self.transport.sleep(pause_s)

    async def _open(self, request: Request, deadline: Deadline) -> httpx2.Response:
        """Send a request once; return the response, its body unread, or raise its error."""
        left_s = deadline.left_s()
        if left_s <= 0:
            raise ResponseTimeoutError(f"no response within {deadline.timeout_s:g} s", sent=False)
        if request.upload:
            request.upload.seek(0)
        options = dict(request.options)
        deadline_ms = max(1, int(left_s * DEADLINE_SHARE * 1000))
        options["headers"] = {**options.get("headers", {}), DEADLINE_HEADER: str(deadline_ms)}
        timeout = httpx2.Timeout(left_s, connect=min(left_s, MAX_CONNECT_S))
        with _errors():
            response = await self.transport.open(
                request.method, request.path, request.upload, timeout=timeout, **options
            )
        if response.is_success:
            return response
        raise problem_of(response, await self._read(response, deadline))

    async def _read(self, response: httpx2.Response, deadline: Deadline) -> bytes:
        """Return the body and release the connection; a body that arrives too slowly raises ResponseTimeoutError."""
        body = bytearray()
        try:
            with _errors():
                async with aclosing(self.transport.chunks(response)) as chunks:
                    async for chunk in chunks:
                        body += chunk
                        if deadline.left_s() <= 0:
                            raise ResponseTimeoutError(f"no complete response within {deadline.timeout_s:g} s")
        finally:
            await self.transport.close(response)
        return bytes(body)


@contextmanager
def _errors() -> Iterator[None]:
    """Raise the errors of httpx2 as ours."""
    try:
        yield
    except httpx2.DecodingError as error:
        raise UnexpectedResponseError(f"the response's content coding is broken: {error}") from error
    except httpx2.HTTPError as error:
        reason = f"{str(error) or type(error).__name__} ({error.request.url})"
        kind = ResponseTimeoutError if isinstance(error, httpx2.TimeoutException) else NoResponseError
        raise kind(f"no response: {reason}", sent=not isinstance(error, NOT_SENT)) from error


def parse_json(text: bytes) -> Any:
    """Parse JSON, or raise UnexpectedResponseError."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise UnexpectedResponseError(f"the response is not JSON: {text[:QUOTED_CHARS]!r}") from error


def problem_of(response: httpx2.Response, body: bytes) -> ProblemError | UnexpectedResponseError:
    """Return the error of a response that is not a success."""
    retry_after = parse_retry_after(response.headers.get("retry-after"))
    request_id = response.headers.get("x-request-id")
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        return ProblemError.of(to_problem(parse_json(body), response.status_code, retry_after, request_id))
    if response.is_redirect:
        target = response.headers.get("location", "")
        return UnexpectedResponseError(f"{response.request.url} redirects to {target}: give that address to the client")
    text = body[:QUOTED_CHARS].decode(errors="replace")
    return ProblemError(
        Problem(
            response.status_code,
            f"http_{response.status_code}",
            response.reason_phrase,
            f"{response.request.url} responded {response.status_code} {response.reason_phrase}: {text!r}",
            response.status_code in (*REFUSED, *UNCERTAIN),
            retry_after,
            request_id,
        )
    )


def to_problem(
    data: Any, status: int = 500, retry_after_s: float | None = None, request_id: str | None = None
) -> Problem:
    """Return a problem of its JSON; the other arguments fill in what it lacks."""
    given = data if isinstance(data, Mapping) else {}
    if retry_after_s is None:
        retry_after_s = given.get("retry_after_s")
    return Problem(
        status=given.get("status", status),
        code=given.get("code", f"http_{status}"),
        title=given.get("title", ""),
        detail=given.get("detail", ""),
        retryable=given.get("retryable", False),
        retry_after_s=retry_after_s,
        request_id=given.get("request_id", request_id),
    )
