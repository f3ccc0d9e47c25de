"""A small HTTP/1.1 client for load tests, which share a machine with the server: it takes little CPU time.

Requests are byte strings, built before the clock starts. The parser reads status, length and body, and nothing else.
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
REASON_BYTES = 300  # of a failed response's end; they hold the error's sentence
FAILED_IMAGE = b'"status":"error"'


class Answer(NamedTuple):
    """One HTTP response."""

    status: int
    body: bytes
    keep_alive: bool


class Sample(NamedTuple):
    """One request.

    Attributes:
        due: When it should have been sent, as ``time.perf_counter`` counts; so are ``sent`` and ``end``.
        sent: When it was sent.
        end: When its response was complete, or it failed.
        outcome: ``200``, another status, or the name of the client's error.
        batch_sizes: Of each image in the response.
        reason: End of the body, unless the status is 200.
    """

    due: float
    sent: float
    end: float
    outcome: str
    batch_sizes: tuple[int, ...]
    reason: str = ""


def parse(received: bytes | bytearray) -> Answer | None:
    """Parse one response, with a content length or chunked; return None while bytes are missing."""
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = bytes(received[:head_end]).lower()
    status, start = int(head[9:12]), head_end + 4
    keep_alive = b"\r\nconnection: close" not in head
    if b"\r\ntransfer-encoding: chunked" in head:
        body = _chunks(received, start)
        return None if body is None else Answer(status, body, keep_alive)
    _, declared, rest = head.partition(b"\r\ncontent-length:")
    length = int(rest.partition(b"\r\n")[0]) if declared else 0
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
    """A keep-alive connection with at most one request in flight."""

    def __init__(self) -> None:
        """Create it without a transport."""
        self.open = False
        self._received = bytearray()
        self._answer: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self.open = True

    def data_received(self, data: bytes) -> None:
        """Collect bytes until the response is complete."""
        self._received += data
        answer = parse(self._received)
        if answer and self._answer and not self._answer.done():
            self._received.clear()
            self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request in flight."""
        self.open = False
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionError("closed"))

    def close(self) -> None:
        """Close the connection."""
        self.open = False
        self._transport.close()

    async def post(self, request: bytes) -> Answer:
        """Send a request and wait for its response.

        Raises:
            ConnectionError: The server closed the connection.
        """
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        answer = await self._answer
        if not answer.keep_alive:
            self.close()
        return answer


class Client:
    """Sends prepared requests in turn, over as many connections as requests are in flight."""

    def __init__(
        self, url: SplitResult, requests: Sequence[bytes], timeout_s: float, source: str | None = None
    ) -> None:
        """Connect nowhere yet.

        Args:
            url: Of the server.
            requests: Complete HTTP requests.
            timeout_s: After which a request has failed.
            source: Address of this machine to call from.
        """
        self._source = source and (source, 0)
        self._address = (url.hostname or "127.0.0.1", url.port or 80)
        self._requests = itertools.cycle(requests)
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []
        self.samples: list[Sample] = []

    async def post(self, due: float) -> None:
        """Send the next request and record its sample; a 200 with a failed image is a failure too."""
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
            await asyncio.sleep(0.01)  # do not connect in a busy loop
        self.samples.append(Sample(due, sent, time.perf_counter(), outcome, batch_sizes, reason))

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, *self._address, local_addr=self._source)
        return connection


def image_files(folder: Path) -> list[Path]:
    """Return every JPEG and PNG below a folder, sorted by path.

    Raises:
        FileNotFoundError: The folder holds none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in TYPES)
    if not files:
        raise FileNotFoundError(f"no JPEG or PNG below {folder}")
    return files


def format_requests(url: SplitResult, files: Sequence[Path], per_request: int, field: str | None) -> list[bytes]:
    """Build complete HTTP requests: one image as the body, or several in a form.

    Args:
        url: Target.
        files: Images, used in turn.
        per_request: Images per request.
        field: Form field of the images; None sends an image as the body.
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
    head = f"POST {url.path or '/'} HTTP/1.1\r\nHost: {url.netloc}\r\nUser-Agent: load\r\nContent-Type: {kind}\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
