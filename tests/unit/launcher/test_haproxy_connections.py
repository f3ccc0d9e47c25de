"""What the real HAProxy does when a client leaves, closes its half of the connection, or loses its replica."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path

import pytest

from tests.support.haproxy import haproxy, replica
from tests.support.haproxy_client import TIMEOUT_S, HeldReplica, answer, connect, get, held, post, read

HALF_MIB = 512 * 1024
KEEP_ALIVE = re.compile(r"(timeout http-keep-alive )90s")  # Ray's default
LIBRARY = "User-Agent: python-httpx2/2.0"  # names itself, as HTTP libraries and browsers do
LAST_REQUESTS = {
    "Connection: close": post("/v1/classify", "Connection: close"),
    "kept": post(),
    "HTTP/1.0": post(version="1.0"),
    "GET": get("/v1/models"),
    "1.5 MB, larger than the buffer": post("/v1/jobs", body=bytes(3 * HALF_MIB)),
    "chunked": b"POST /predict HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nimage\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", LAST_REQUESTS.values(), ids=LAST_REQUESTS)
def test_a_half_closed_client_gets_its_answer(tmp_path: Path, request_bytes: bytes) -> None:
    """It closes its half of the connection after the request, and the replica answers later (RFC 9112, section 9.6)."""
    with held(tmp_path) as (port, service), closing(connect(port)) as client:
        client.sendall(request_bytes)
        client.shutdown(socket.SHUT_WR)
        service.requests.get(timeout=TIMEOUT_S)
        assert service.closed.empty()
        service.release()
        assert read(client) == (200, b"ok")
        assert client.recv(1) == b""


def test_a_client_may_close_its_half_while_it_waits(tmp_path: Path) -> None:
    """After an earlier request on the same connection."""
    service = HeldReplica()

    def respond(connection: socket.socket, request: bytes) -> bool:
        return answer(connection, request) if b"/readyz" in request else service.respond(connection, request)

    with replica(respond) as replica_port, haproxy(tmp_path, replica_port) as port, closing(connect(port)) as client:
        client.sendall(get("/readyz"))
        assert read(client) == (200, b"ok")
        client.sendall(post())
        service.requests.get(timeout=TIMEOUT_S)
        client.shutdown(socket.SHUT_WR)
        service.release()
        assert read(client) == (200, b"ok")


@pytest.mark.parametrize("headers", [(), ("Connection: close",)], ids=("kept", "last"))
def test_half_a_request_reaches_no_replica(tmp_path: Path, headers: tuple[str, ...]) -> None:
    """A client that closes its half within the request gave it up; HAProxy closes the connection."""
    with held(tmp_path) as (port, service), closing(connect(port)) as client:
        client.sendall(post("/v1/classify", *headers)[:-1])
        client.shutdown(socket.SHUT_WR)
        response = b"".join(iter(lambda: client.recv(65536), b""))
        assert not response or response.startswith(b"HTTP/1.1 400 ")
        assert service.requests.empty()


@pytest.mark.parametrize("reset", [False, True], ids=("closed", "reset"))
def test_a_client_that_leaves_ends_its_request(tmp_path: Path, reset: bool) -> None:
    """HAProxy closes the replica's connection, and Ray Serve cancels the work."""
    with held(tmp_path) as (port, service):
        client = connect(port)
        client.sendall(post("/v1/classify", LIBRARY))
        service.requests.get(timeout=TIMEOUT_S)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        service.closed.get(timeout=TIMEOUT_S / 2)  # HAProxy itself gives up on the replica after 20 s


def test_a_client_that_left_ends_its_stream(tmp_path: Path) -> None:
    """A program that may have closed only its half is known to have left when the first results reach nobody."""
    arrived, left, ended = threading.Event(), threading.Event(), threading.Event()

    def stream(connection: socket.socket, _request: bytes) -> bool:
        arrived.set()
        left.wait(TIMEOUT_S)
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                connection.sendall(b"4\r\nline\r\n")
                time.sleep(0.01)
        finally:
            ended.set()

    with replica(stream) as replica_port, haproxy(tmp_path, replica_port) as port:
        with closing(connect(port)) as client:
            client.sendall(post())
            assert arrived.wait(TIMEOUT_S)
        left.set()
        assert ended.wait(TIMEOUT_S)


REPEATABLE = {
    "classify": post(),
    "classify, a library": post("/v1/classify", LIBRARY),
    "classify with parameters": post("/v1/classify?top_k=3"),
    "route prefix": post("/photos/v1/classify/"),
    "predict": post("/predict"),
    "OIP": post("/v2/models/resnet18/infer"),
    "OIP version": post("/v2/models/resnet18/versions/1/infer"),
    "Hugging Face": post("/"),
    "TorchServe": post("/predictions/resnet18"),
    "TorchServe version": post("/predictions/resnet18/1.0/"),
    "TorchServe PUT": get("/predictions/resnet18", method="PUT"),
    "job with key": post("/v1/jobs?top_k=3", "Idempotency-Key: 7"),
    "GET": get("/v1/jobs/7/results"),
    "DELETE": get("/v1/jobs/7", method="DELETE"),
}
UNREPEATABLE = {
    "job": post("/v1/jobs"),
    "job, a library": post("/v1/jobs", LIBRARY),
    "feedback": post("/v1/feedback"),
    "feedback with a key": post("/v1/feedback", "Idempotency-Key: 7"),
    "unknown": post("/v1/classify/later"),
    "below a prediction": post("/predictions/resnet18/1/later"),
}


def lost(folder: Path, request: bytes) -> tuple[int, int, dict[str, object], str | None]:
    """Send a request whose replica closes the connection; return the tries, and the answer with its Retry-After."""
    tries: list[bytes] = []

    def lose(_connection: socket.socket, request: bytes) -> bool:
        tries.append(request)
        return False

    with replica(lose) as one, replica(lose) as other:
        settings = {"retry_on": "conn-failure empty-response", "retries": 1}
        with haproxy(folder, one, other, **settings) as port, closing(connect(port)) as client:
            client.sendall(request)
            response = HTTPResponse(client)
            response.begin()
            problem = json.loads(response.read())
            return len(tries), response.status, problem, response.getheader("retry-after")


@pytest.mark.parametrize("request_bytes", REPEATABLE.values(), ids=REPEATABLE)
def test_what_changes_nothing_is_sent_to_another_replica(tmp_path: Path, request_bytes: bytes) -> None:
    tries, status, problem, retry_after = lost(tmp_path, request_bytes)
    assert tries > 1
    assert (status, problem["status"], problem["code"], problem["retryable"]) == (503, 503, "not_ready", True)
    assert retry_after == "1"


@pytest.mark.parametrize("request_bytes", UNREPEATABLE.values(), ids=UNREPEATABLE)
def test_what_may_have_happened_is_sent_once(tmp_path: Path, request_bytes: bytes) -> None:
    """A second try could start a second job, or count a vote twice; the answer says so."""
    tries, status, problem, retry_after = lost(tmp_path, request_bytes)
    assert tries == 1
    assert (status, problem["status"], problem["code"], problem["retryable"]) == (502, 502, "request_lost", False)
    assert retry_after is None


def test_an_idle_connection_stays_open_for_the_keep_alive_time(tmp_path: Path) -> None:
    """Between two requests Ray's `keep_alive_timeout_s` counts, not the shorter time for a client within a request."""
    with (
        replica(answer) as replica_port,
        haproxy(tmp_path, replica_port, timeout_client_s=1, edit=lambda text: KEEP_ALIVE.sub(r"\g<1>3s", text)) as port,
        closing(connect(port)) as client,
    ):
        client.sendall(get("/readyz"))
        assert read(client) == (200, b"ok")
        time.sleep(1.5)
        client.sendall(get("/readyz"))
        assert read(client) == (200, b"ok")
        started = time.monotonic()
        assert client.recv(1) == b""
        assert time.monotonic() - started > 2.5
