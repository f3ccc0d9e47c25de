"""Huge and slow responses are cut off, whatever the server declares."""

from __future__ import annotations

import asyncio
from itertools import chain, repeat

import pytest

from serve_app.errors import TooLargeError
from serve_app.fetching.fetch import MAX_PIECES
from tests.support.image_host import Answer, hosting, response, sends, silent
from tests.support.photos import make_photo
from tests.support.web import LIMITS, Web, make_web, tls_server

PHOTO = make_photo()
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
LIMIT = LIMITS.max_image_bytes


def endless(start: bytes, piece: bytes, every_s: float = 0) -> Answer:
    """Send pieces until the client hangs up."""

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        for part in chain([start], repeat(piece)):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(every_s)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(response(PHOTO, content_length=str(LIMIT + 1)), id="declared"),
        pytest.param(response(PHOTO, content_length="9" * 19), id="declared in exabytes"),
        pytest.param(endless(HEAD + PHOTO, b"x" * 65536), id="not declared"),
        pytest.param(
            endless(HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
            id="chunked",
        ),
    ],
)
async def test_a_huge_image_is_cut_off(answer: bytes | Answer) -> None:
    async with hosting(sends(answer) if isinstance(answer, bytes) else answer) as host:
        error = await make_web(host.port).fetch(f"http://photos.example:{host.port}/")
    assert isinstance(error, TooLargeError)
    assert "more than 100,000 bytes" in str(error)


async def test_the_largest_image_is_taken() -> None:
    largest = PHOTO.ljust(LIMIT, b"\0")
    for answer in (response(largest), HEAD + largest):
        async with hosting(sends(answer)) as host:
            assert await make_web(host.port).fetch(f"http://photos.example:{host.port}/") == largest


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        pytest.param(HEAD[:-2], b"X-Long: " + b"x" * 4096 + b"\r\n", id="headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x" * 4096, id="one header"),
        pytest.param(b"HTTP/1.1 200 ", b"x" * 4096, id="status line"),
        pytest.param(HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 4096, id="chunk extension"),
        pytest.param(HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000, id="chunks of a byte"),
    ],
)
async def test_endless_framing_is_cut_off(start: bytes, piece: bytes) -> None:
    """A response is refused for its many or long parts, not only when its time is over."""
    limits = LIMITS.model_copy(update={"max_image_bytes": 100 * MAX_PIECES})
    async with hosting(endless(start, piece)) as host:
        web = make_web(host.port, timeout_s=300, deadline_s=300, limits=limits)
        async with asyncio.timeout(200):
            assert await web.refuses(f"http://photos.example:{host.port}/")


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", id="headers"),
        pytest.param(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", id="hints"),
        pytest.param(HEAD + PHOTO, b"x", id="body"),
        pytest.param(HEAD + PHOTO, b"", id="stalled body"),
    ],
)
@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param({"timeout_s": 0.3}, id="timeout_s"),
        pytest.param(
            {"limits": LIMITS.model_copy(update={"body_grace_s": 0.3, "min_body_bytes_per_s": 10_000_000})}, id="pace"
        ),
    ],
)
async def test_a_slow_response_is_cut_off(start: bytes, piece: bytes, bounds: dict[str, object]) -> None:
    """Each of the two bounds cuts it off on its own; the other would take 20 s."""
    async with hosting(endless(start, piece, every_s=0.05)) as host:
        async with asyncio.timeout(15):
            assert await make_web(host.port, **bounds).refuses(f"http://photos.example:{host.port}/")


async def test_redirects_share_the_time_of_one_image() -> None:
    async def slowly(head: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(response(status=302, location="/again"))

    async with hosting(slowly) as host:
        assert await make_web(host.port, timeout_s=0.5, max_redirects=10).refuses(f"http://photos.example:{host.port}/")
    assert len(host.heads) < 10


async def test_a_silent_handshake_is_cut_off() -> None:
    """The server takes the TCP connection, and the client waits for TLS; the connection does not stay open."""
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        closed.set()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        web = make_web(port, scheme="https", timeout_s=0.3)
        assert await web.refuses(f"https://photos.example:{port}/")
        async with asyncio.timeout(15):
            await closed.wait()
    finally:
        listening.close()


async def test_a_silent_resolver_is_cut_off() -> None:
    class SlowWeb(Web):
        async def resolve(self, host: str, port: int) -> list[str]:
            await asyncio.sleep(60)
            return []

    web = SlowWeb({}, ["photos.example"], timeout_s=0.3)
    assert await web.refuses("https://photos.example/")


async def test_a_cancelled_fetch_hangs_up() -> None:
    """The client of the service has left."""
    left = asyncio.Event()

    async def wait(head: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            await silent(head, writer)
        finally:  # it may end with a reset
            left.set()

    async with hosting(wait, tls=tls_server("photos.example")) as host:
        fetching = asyncio.create_task(
            make_web(host.port, scheme="https").fetch(f"https://photos.example:{host.port}/")
        )
        async with asyncio.timeout(15):
            while not host.heads:
                await asyncio.sleep(0.01)
            fetching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetching
            await left.wait()
