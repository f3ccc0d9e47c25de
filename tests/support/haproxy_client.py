"""Requests byte by byte to the real HAProxy, and a replica that keeps them."""

from __future__ import annotations

import queue
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path

from tests.support.haproxy import haproxy, replica

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TIMEOUT_S = 30


def post(path: str = "/v1/classify", *headers: str, body: bytes = b"image", version: str = "1.1") -> bytes:
    """Return the bytes of a POST request."""
    lines = (f"POST {path} HTTP/{version}", "Host: api", *headers, f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(lines).encode() + body


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    """Return the bytes of a request without a body."""
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: api", *headers, "", "")).encode()


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    """Connect to HAProxy."""
    return socket.create_connection((host, port), timeout=TIMEOUT_S)


def read(connection: socket.socket) -> tuple[int, bytes]:
    """Return status and body of the next response."""
    response = HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def answer(connection: socket.socket, _request: bytes) -> bool:
    """Answer 200."""
    connection.sendall(OK)
    return True


class HeldReplica:
    """A replica that keeps requests until the test releases them.

    Attributes:
        requests: What has arrived.
        closed: Gets an element when HAProxy closes the connection of a request that is kept.
    """

    def __init__(self) -> None:
        self.requests: queue.Queue[bytes] = queue.Queue()
        self.closed: queue.Queue[bytes] = queue.Queue()
        self._released: queue.Queue[None] = queue.Queue()

    def respond(self, connection: socket.socket, request: bytes) -> bool:
        """Answer once released; watch the connection until then."""
        self.requests.put(request)
        connection.settimeout(0.01)
        while self._released.empty():
            try:
                gone = not connection.recv(1)
            except TimeoutError:
                continue
            except OSError:
                gone = True
            if gone:
                self.closed.put(request)
                return False
        connection.settimeout(TIMEOUT_S)
        return answer(connection, request)

    def release(self) -> None:
        """Answer all requests, those of the future too."""
        self._released.put(None)


@contextmanager
def held(folder: Path) -> Iterator[tuple[int, HeldReplica]]:
    """Run HAProxy in front of a replica that keeps requests; gives the API's port and the replica."""
    held_replica = HeldReplica()
    with replica(held_replica.respond) as replica_port, haproxy(folder, replica_port) as port:
        yield port, held_replica
