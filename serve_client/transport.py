"""How requests reach the service: over sockets that block, or over those of an event loop.

The client's operations are written once, as coroutines over a transport. Those of ``BlockingTransport`` never suspend,
so ``run`` and ``iterate`` drive the same operations without an event loop. ``blocking`` and ``blocking_iterator`` make
methods of them, with their parameters and docstrings.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import IO, Any, Concatenate, ParamSpec, Protocol, TypeVar

import anyio
import anyio.to_thread
import httpx2

P = ParamSpec("P")
T = TypeVar("T")
UPLOAD_CHUNK_BYTES = 1 << 20


class Transport(Protocol):
    """What the operations need of the network, of threads and of the clock."""

    async def open(self, method: str, url: str, upload: IO[bytes] | None = None, **options: Any) -> httpx2.Response:
        """Send a request to the service; return the response with its body unread.

        Args:
            method: HTTP method.
            url: Path.
            upload: A file whose rest is the body.
            options: Those of ``httpx2.Client.build_request``.
        """
        ...

    async def fetch(self, address: str, timeout_s: float) -> httpx2.Response:
        """Get an address elsewhere, without the service's headers: nobody else may see the API key."""
        ...

    def chunks(self, response: httpx2.Response) -> AsyncGenerator[bytes, None]:
        """Yield a response's body in pieces."""
        ...

    async def close(self, response: httpx2.Response) -> None:
        """Release a response's connection."""
        ...

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function that reads files or computes."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class BlockingTransport:
    """Blocks the calling thread; no method suspends.

    Args:
        http: Holds the service's address and headers.
        sleep: Waits; tests pass a function that does not.
    """

    def __init__(self, http: httpx2.Client, sleep: Callable[[float], None] = time.sleep) -> None:
        self._http, self._sleep = http, sleep
        self._web: httpx2.Client | None = None  # made when needed: reading the system's certificates takes time

    async def open(self, method: str, url: str, upload: IO[bytes] | None = None, **options: Any) -> httpx2.Response:
        if upload:
            options["content"] = _pieces(upload)
        return self._http.send(self._http.build_request(method, url, **options), stream=True)

    async def fetch(self, address: str, timeout_s: float) -> httpx2.Response:
        self._web = self._web or httpx2.Client(follow_redirects=True)
        return self._web.send(self._web.build_request("GET", address, timeout=timeout_s), stream=True)

    async def chunks(self, response: httpx2.Response) -> AsyncGenerator[bytes, None]:
        for chunk in response.iter_bytes():
            yield chunk

    async def close(self, response: httpx2.Response) -> None:
        response.close()

    async def call(self, function: Callable[[], T]) -> T:
        return function()

    async def sleep(self, seconds: float) -> None:
        self._sleep(seconds)

    async def aclose(self) -> None:
        for http in (self._http, self._web):
            if http:
                http.close()


class AsyncTransport:
    """Runs on the event loop of asyncio or Trio; files are read in threads.

    Args:
        http: Holds the service's address and headers.
    """

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self._web: httpx2.AsyncClient | None = None

    async def open(self, method: str, url: str, upload: IO[bytes] | None = None, **options: Any) -> httpx2.Response:
        if upload:
            options["content"] = self._pieces(upload)
        return await self._http.send(self._http.build_request(method, url, **options), stream=True)

    async def fetch(self, address: str, timeout_s: float) -> httpx2.Response:
        self._web = self._web or httpx2.AsyncClient(follow_redirects=True)
        return await self._web.send(self._web.build_request("GET", address, timeout=timeout_s), stream=True)

    async def _pieces(self, file: IO[bytes]) -> AsyncIterator[bytes]:
        while piece := await self.call(lambda: file.read(UPLOAD_CHUNK_BYTES)):
            yield piece

    async def chunks(self, response: httpx2.Response) -> AsyncGenerator[bytes, None]:
        async for chunk in response.aiter_bytes():
            yield chunk

    async def close(self, response: httpx2.Response) -> None:
        with anyio.CancelScope(shield=True):  # the connection goes back to the pool also if the caller was cancelled
            await response.aclose()

    async def call(self, function: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(function)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def aclose(self) -> None:
        for http in (self._http, self._web):
            if http:
                await http.aclose()


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(UPLOAD_CHUNK_BYTES):
        yield piece


def run(awaitable: Awaitable[T]) -> T:
    """Return the result of a coroutine that never suspends."""
    steps = awaitable.__await__()
    try:
        next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a blocking operation was suspended")


def iterate(items: AsyncGenerator[T, None]) -> Iterator[T]:
    """Yield the items of an asynchronous generator that never suspends, and close it at the end."""
    try:
        while True:
            try:
                item = run(items.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(items.aclose())


def blocking(operation: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """Return a method that runs an operation of ``self._operations``."""

    @functools.wraps(operation)
    def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run(operation(self._operations, *args, **kwargs))

    return method


def blocking_iterator(
    operation: Callable[Concatenate[Any, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """Return a method that yields the items of an operation of ``self._operations``."""

    @functools.wraps(operation)
    def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return iterate(operation(self._operations, *args, **kwargs))

    shown = inspect.signature(operation)  # for help(), which would show an asynchronous generator
    setattr(method, "__signature__", shown.replace(return_annotation="Iterator"))  # noqa: B010 # mypy knows no such attribute
    return method
