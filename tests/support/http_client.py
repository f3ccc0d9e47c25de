"""A small HTTP/1.1 client that takes little from the server it measures, on a machine that both share.

Requests are whole byte strings made before the clock starts; answers are read by a parser that
knows no more than it has to.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult

TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
BOUNDARY = b"benchmark-7c1f0e"
BATCH_SIZE = re.compile(rb'"batch_size": ?(\d+)')
REASON_BYTES = 300  # the sentence is in them
FAILED_IMAGE = b'"status":"error"'


class Answer(NamedTuple):
    """One HTTP response."""

    status: int
    body: bytes
    keep_alive: bool


class Sample(NamedTuple):
    """One request: when it was due, sent and answered, its outcome (``200`` or why not), and what was said of that."""

    due: float
    sent: float
    end: float
    outcome: str
    batch_sizes: tuple[int, ...]
    reason: str = ""


def parse(received: bytes | bytearray) -> Answer | None:
    """Read one response with a content length or in chunks; None while bytes are missing."""
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = bytes(received[:head_end]).lower()
    status, start = int(head[9:12]), head_end + 4
    keep_alive = b"\r\nconnection: close" not in head
    if b"\r\ntransfer-encoding: chunked" in head:
        body = _chunks(received, start)
        return None if body is None else Answer(status, body, keep_alive)
    _, found, rest = head.partition(b"\r\ncontent-length:")
    length = int(rest.partition(b"\r\n")[0]) if found else 0
    body = bytes(received[start : start + length])
    return Answer(status, body, keep_alive) if len(body) == length else None


def _chunks(received: bytes | bytearray, at: int) -> bytes | None:
    body = b""
    while (line_end := received.find(b"\r\n", at)) >= 0:
        size = int(bytes(received[at:line_end]).partition(b";")[0], 16)
        start = line_end + 2
        if len(received) < start + size + 2:
            return None
        if size == 0:
            return body
        body += received[start : start + size]
        at = start + size + 2
    return None


class Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request under way."""

    def __init__(self) -> None:
        """Wait for the transport."""
        self.open = False
        self._received = bytearray()
        self._answer: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self.open = True

    def data_received(self, data: bytes) -> None:
        """Collect bytes until an answer is whole."""
        self._received += data
        answer = parse(self._received)
        if answer and self._answer and not self._answer.done():
            self._received.clear()
            self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request under way."""
        self.open = False
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionError("closed"))

    def close(self) -> None:
        """Hang up."""
        self.open = False
        self._transport.close()

    async def post(self, request: bytes) -> Answer:
        """Send a request and wait for its answer.

        Raises:
            ConnectionError: The server hung up.
        """
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        answer = await self._answer
        if not answer.keep_alive:
            self.close()
        return answer


class Client:
    """Sends the prepared requests in turn over as many connections as are needed."""

    def __init__(self, url: SplitResult, requests: Sequence[bytes], timeout_s: float) -> None:
        """Keep what to send; nothing is connected yet."""
        self._address = (url.hostname or "127.0.0.1", url.port or 80)
        self._requests = itertools.cycle(requests)
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []
        self.samples: list[Sample] = []

    async def post(self, due: float) -> None:
        """Send the next request and record what happened; any answer but a flawless 200 is a failure."""
        sent, batch_sizes, reason = time.perf_counter(), (), ""
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connection()
                try:
                    answer = await connection.post(next(self._requests))
                except BaseException:
                    connection.close()
                    raise
            outcome = "200 with failed images" if FAILED_IMAGE in answer.body else str(answer.status)
            batch_sizes = tuple(map(int, BATCH_SIZE.findall(answer.body)))
            if answer.status != 200:
                reason = answer.body[-REASON_BYTES:].decode(errors="replace")
            if connection.open:
                self._idle.append(connection)
        except (OSError, TimeoutError) as error:
            outcome = type(error).__name__
            await asyncio.sleep(0.01)  # a server that refuses connections is not to be hammered
        self.samples.append(Sample(due, sent, time.perf_counter(), outcome, batch_sizes, reason))

    def close(self) -> None:
        """Hang up."""
        for connection in self._idle:
            connection.close()

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, *self._address)
        return connection


def image_files(folder: Path) -> list[Path]:
    """Every JPEG and PNG below a folder, in a fixed order.

    Raises:
        FileNotFoundError: There is none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in TYPES)
    if not found:
        raise FileNotFoundError(f"no JPEG or PNG below {folder}")
    return found


def format_requests(url: SplitResult, files: Sequence[Path], per_request: int, field: str | None) -> list[bytes]:
    """Whole HTTP requests: each image alone as the body, or several in a form.

    Args:
        url: Where to.
        files: Used in turn.
        per_request: Images in each request.
        field: Form field that holds the images; without it an image is the body.
    """
    turns: Iterator[Path] = itertools.cycle(files)
    count = len(files) if per_request == 1 else min(len(files), 8)
    return [_request(url, [next(turns) for _ in range(per_request)], field) for _ in range(count)]


def _request(url: SplitResult, files: Sequence[Path], field: str | None) -> bytes:
    if field is None:
        (path,) = files
        body, kind = path.read_bytes(), TYPES[path.suffix.lower()]
    else:
        kind = f"multipart/form-data; boundary={BOUNDARY.decode()}"
        parts = (
            b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\nContent-Type: %s\r\n\r\n%s\r\n'
            % (BOUNDARY, field.encode(), path.name.encode(), TYPES[path.suffix.lower()].encode(), path.read_bytes())
            for path in files
        )
        body = b"".join(parts) + b"--%s--\r\n" % BOUNDARY
    head = f"POST {url.path or '/'} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: {kind}\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
