"""A response ends when its client takes it too slowly, and only then."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from serve_app.http.slow_readers import PIECE_BYTES, SlowReaderError, SlowReaderMiddleware

SCOPE = {"type": "http", "path": "/"}
HEAD = {"type": "http.response.start", "status": 200, "headers": []}
App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def receive() -> Message:
    return {"type": "http.disconnect"}


def responding(*bodies: bytes, pause: Callable[[], Awaitable[None]] | None = None) -> App:
    """Return an app that sends these bodies, and pauses before each."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(HEAD)
        for number, body in enumerate(bodies, 1):
            if pause:
                await pause()
            await send({"type": "http.response.body", "body": body, "more_body": number < len(bodies)})

    return app


class Client:
    """Takes a number of bytes, then nothing more."""

    def __init__(self, most: int | None = None) -> None:
        self.taken: list[Message] = []
        self._most = most

    async def send(self, message: Message) -> None:
        if self._most is not None and self.size >= self._most:
            await asyncio.Event().wait()
        self.taken.append(message)

    @property
    def size(self) -> int:
        return sum(len(message.get("body", b"")) for message in self.taken)


@pytest.mark.parametrize("most", [0, 1, 200_000])
@pytest.mark.parametrize("bodies", [(bytes(1_000_000),), (bytes(1000),) * 1000], ids=("one body", "a stream"))
async def test_a_client_that_stops_taking_ends_the_response(most: int, bodies: tuple[bytes, ...]) -> None:
    """However much it took before, and however the app sends."""
    client = Client(most)
    middleware = SlowReaderMiddleware(responding(*bodies), grace_s=0.01, min_bytes_per_s=1e9)
    with pytest.raises(SlowReaderError):
        await middleware(SCOPE, receive, client.send)
    assert client.size < most + PIECE_BYTES + 1


async def test_a_client_that_dribbles_ends_the_response() -> None:
    """What it takes earns less time than it costs."""

    async def dribble(_message: Message) -> None:
        await asyncio.sleep(0.001)

    middleware = SlowReaderMiddleware(responding(*[b"x"] * 10_000), grace_s=0.01, min_bytes_per_s=1e6)
    with pytest.raises(SlowReaderError):
        await middleware(SCOPE, receive, dribble)


async def test_time_of_the_service_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream whose results take longer than the client's grace."""
    client, loop, passed_s = Client(), asyncio.get_running_loop(), 0.0
    real_time = loop.time
    monkeypatch.setattr(loop, "time", lambda: real_time() + passed_s)

    async def compute() -> None:
        nonlocal passed_s
        passed_s += 100

    middleware = SlowReaderMiddleware(responding(b"a", b"b", b"c", pause=compute), grace_s=30)
    await middleware(SCOPE, receive, client.send)
    assert [message.get("body") for message in client.taken] == [None, b"a", b"b", b"c"]


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 1_000_000])
async def test_a_response_arrives_as_it_was_sent(size: int) -> None:
    """In pieces, of which the last one ends the response."""
    client, body = Client(), bytes(number % 251 for number in range(size))
    await SlowReaderMiddleware(responding(body))(SCOPE, receive, client.send)
    head, *pieces = client.taken
    assert head == HEAD
    assert b"".join(piece["body"] for piece in pieces) == body
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert max(len(piece["body"]) for piece in pieces) <= PIECE_BYTES


async def test_other_protocols_pass() -> None:
    seen: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    await SlowReaderMiddleware(app)({"type": "lifespan"}, receive, Client().send)
    assert seen == ["lifespan"]


async def test_uvicorn_drops_a_client_that_does_not_read() -> None:
    """The app sees a disconnect, and the client gets an end before the end of the response."""
    seen: list[str] = []
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(HEAD)
        for _ in range(64):
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        await receive()  # the request itself
        seen.append((await receive())["type"])
        ended.set()

    server = uvicorn.Server(uvicorn.Config(SlowReaderMiddleware(app, 0.1, 2**30), log_level="critical", lifespan="off"))
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname(), limit=1024)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.wait_for(ended.wait(), 60)
        assert seen == ["http.disconnect"]
        with pytest.raises(ConnectionResetError):
            await reader.read()
    finally:
        writer.close()
        server.should_exit = True
        await serving
