"""What the real HAProxy does with connections: clients that leave or read slowly, lost replicas, too many of a kind."""

from __future__ import annotations

import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPResponse
from pathlib import Path

import pytest

from serve_app.launcher.haproxy import MAX_ADDRESS_CONNECTIONS, MAX_INGRESS_REQUESTS, has_loopback_6
from tests.support.haproxy import haproxy, replica
from tests.support.polling import wait_for

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TIMEOUT_S = 30
HALF_MIB = 512 * 1024
LIBRARY = "User-Agent: python-httpx2/2.0"  # names itself, as HTTP libraries and browsers do


def post(path: str = "/v1/classify", *headers: str, body: bytes = b"image", version: str = "1.1") -> bytes:
    """Return the bytes of a POST request."""
    lines = (f"POST {path} HTTP/{version}", "Host: api", *headers, f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(lines).encode() + body


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    """Return the bytes of a request without a body."""
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: api", *headers, "", "")).encode()


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, port), timeout=TIMEOUT_S)


def read(connection: socket.socket) -> tuple[int, bytes]:
    """Return status and body of the next response."""
    response = HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def answer(connection: socket.socket, _request: bytes) -> bool:
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
    held_replica = HeldReplica()
    with replica(held_replica.respond) as replica_port, haproxy(folder, replica_port) as port:
        yield port, held_replica


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
    "root": post("/"),
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


@pytest.mark.parametrize("count", [101, 500, 2000])
def test_many_headers_are_no_mistake(tmp_path: Path, count: int) -> None:
    """HAProxy's default is 101."""
    with (
        replica(answer) as replica_port,
        haproxy(tmp_path, replica_port, bufsize=1 << 20) as port,
        closing(connect(port)) as client,
    ):
        client.sendall(get("/v1/models", *(f"X-{n}: {n}" for n in range(count))))
        assert read(client)[0] == 200


def test_a_client_that_reads_nothing_loses_its_connection(tmp_path: Path) -> None:
    """The replica's place is free again, although the response is larger than all buffers."""
    ended: queue.Queue[None] = queue.Queue()

    def send_much(connection: socket.socket, _request: bytes) -> bool:
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(99_999_999))
        finally:
            ended.put(None)
        return False

    with (
        replica(send_much) as replica_port,
        haproxy(tmp_path, replica_port, timeout_client_s=1) as port,
        closing(connect(port)) as client,
    ):
        client.sendall(get("/v1/jobs/7/results"))
        ended.get(timeout=TIMEOUT_S)


def test_downloads_leave_places_for_classification(tmp_path: Path) -> None:
    """A quarter of the places for results; health checks and all else go on."""
    service = HeldReplica()
    environment = {MAX_INGRESS_REQUESTS: "8"}
    with replica(service.respond) as replica_port, haproxy(tmp_path, replica_port, environment=environment) as port:
        downloads = [connect(port) for _ in range(2)]
        for download in downloads:
            download.sendall(get("/v1/jobs/7/results"))
            service.requests.get(timeout=TIMEOUT_S)
        with closing(connect(port)) as third:
            third.sendall(get("/v1/jobs/8/results", "Connection: close"))
            status, body = read(third)
            assert (status, json.loads(body)["code"]) == (503, "overloaded")
        service.release()
        with closing(connect(port)) as other:
            other.sendall(post())
            assert read(other)[0] == 200
        for download in downloads:
            assert read(download)[0] == 200
            download.close()
        with closing(connect(port)) as later:
            later.sendall(get("/v1/jobs/8/results"))
            assert read(later)[0] == 200


def from_elsewhere(config: str) -> str:
    """Let loopback count as another machine."""
    return config.replace("src 127.0.0.0/8 ::1", "src 192.0.2.0/24")


def test_one_address_gets_a_part_of_the_connections(tmp_path: Path) -> None:
    """HAProxy closes further ones at once; an ended connection makes room for another."""
    limits = {MAX_ADDRESS_CONNECTIONS: "3"}
    with replica(answer) as port, haproxy(tmp_path, port, environment=limits, edit=from_elsewhere) as api:

        def ask() -> int:
            try:
                with closing(connect(api)) as client:
                    client.sendall(get("/v1/models"))
                    return read(client)[0]
            except ConnectionError:
                return 0

        idle = [connect(api) for _ in range(3)]
        wait_for(lambda: ask() == 0, what="a refused connection")
        for connection in idle:
            connection.close()
        wait_for(lambda: ask() == 200, what="a free connection")


def test_one_address_gets_a_part_of_the_places(tmp_path: Path) -> None:
    """Half of them; the refusal says why."""
    service = HeldReplica()
    limits = {MAX_ADDRESS_CONNECTIONS: "100", MAX_INGRESS_REQUESTS: "4"}
    with replica(service.respond) as port, haproxy(tmp_path, port, environment=limits, edit=from_elsewhere) as api:
        clients = [connect(api) for _ in range(2)]
        for client in clients:
            client.sendall(post("/v1/classify", "Connection: close"))
            service.requests.get(timeout=TIMEOUT_S)
        with closing(connect(api)) as third:
            third.sendall(post())
            status, body = read(third)
        assert (status, json.loads(body)["code"]) == (503, "overloaded")
        assert "your address" in json.loads(body)["detail"]
        service.release()
        for client in clients:
            assert read(client)[0] == 200
            client.close()


def test_this_machine_has_no_limit_per_address(tmp_path: Path) -> None:
    """The page and proxies on this machine call for many clients."""
    limits = {MAX_ADDRESS_CONNECTIONS: "3"}
    with replica(answer) as port, haproxy(tmp_path, port, environment=limits) as api:
        clients = [connect(api) for _ in range(9)]
        for client in clients:
            client.sendall(get("/v1/models"))
            assert read(client)[0] == 200
            client.close()


@pytest.mark.skipif(not has_loopback_6(), reason="this machine has no ::1")
def test_both_loopback_addresses_answer(tmp_path: Path) -> None:
    with replica(answer) as replica_port, haproxy(tmp_path, replica_port) as port:
        for host in ("127.0.0.1", "::1"):
            with closing(connect(port, host)) as client:
                client.sendall(get("/v1/models"))
                assert read(client)[0] == 200
