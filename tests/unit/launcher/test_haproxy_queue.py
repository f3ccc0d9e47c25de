"""How requests wait in the real HAProxy: who waits, who is refused and when, and in which order they go on."""

from __future__ import annotations

import csv
import io
import json
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPResponse
from pathlib import Path

import pytest

from serve_app.config import LimitsConfig
from serve_app.http.cross_site import HEALTH_PATHS
from serve_app.launcher.haproxy import MAX_INGRESS_REQUESTS
from serve_app.launcher.haproxy_limits import QUEUE_TIMEOUT_S
from tests.support.haproxy import haproxy, replica
from tests.support.haproxy_client import TIMEOUT_S, connect, get, post, read
from tests.support.polling import wait_for

LIMIT = 1  # requests that the replica takes at a time
AGENT = "User-Agent: test"  # requests without one pass HAProxy twice
LEARNED = {"X-Busy-Us": "1000000", "X-Deadline-Ms": "30000"}  # a request per second


class SteppedReplica:
    """A replica that answers one request at each ``step``.

    Attributes:
        requests: What has arrived.
    """

    def __init__(self, headers: dict[str, str]) -> None:
        self.requests: queue.Queue[bytes] = queue.Queue()
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._steps = threading.Semaphore(0)

    def respond(self, connection: socket.socket, request: bytes) -> bool:
        self.requests.put(request)
        self._steps.acquire()
        connection.sendall(f"HTTP/1.1 200 OK\r\n{self._headers}Content-Length: 2\r\n\r\nok".encode())
        return True

    def step(self, times: int = 1) -> None:
        self._steps.release(times)

    def next(self) -> tuple[str, bytes]:
        """Return path and body of the request that arrives next."""
        head, _, body = self.requests.get(timeout=TIMEOUT_S).partition(b"\r\n\r\n")
        return head.decode().split()[1], body


class Service:
    """HAProxy in front of one replica, and clients that end with the test."""

    def __init__(self, port: int, stepped: SteppedReplica, clients: ExitStack, admin: Path) -> None:
        self.replica, self._port, self._clients, self._admin = stepped, port, clients, admin

    def send(self, request: bytes) -> socket.socket:
        client = self._clients.enter_context(closing(connect(self._port)))
        client.sendall(request)
        return client

    def ask(self, name: str, *headers: str) -> socket.socket:
        return self.send(post("/v1/classify", AGENT, *headers, body=name.encode()))

    def occupy(self) -> socket.socket:
        """Let the replica report its rate, then take its only place."""
        first = self.ask("first")
        self.replica.next()
        self.replica.step()
        assert read(first)[0] == 200
        holder = self.ask("holder")
        assert self.replica.next() == ("/v1/classify", b"holder")
        return holder

    def wait_for_queue(self, length: int) -> None:
        """Return once so many requests wait in HAProxy."""
        wait_for(lambda: self._queued() == length, what=f"{length} requests in the queue")

    def _queued(self) -> int:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self._admin))
            admin.sendall(b"show stat\n")
            text = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
        rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
        return sum(int(row["qcur"] or 0) for row in rows if row["pxname"] == "http-main")


@contextmanager
def service(
    folder: Path, headers: dict[str, str] = LEARNED, edit: Callable[[str], str] = lambda text: text
) -> Iterator[Service]:
    stepped = SteppedReplica(headers)
    environment = {MAX_INGRESS_REQUESTS: str(LIMIT)}
    with (
        replica(stepped.respond) as replica_port,
        haproxy(folder, replica_port, environment=environment, edit=edit) as port,
        ExitStack() as clients,
    ):
        yield Service(port, stepped, clients, folder / "admin.sock")
        stepped.step(100)


def head(client: socket.socket) -> HTTPResponse:
    response = HTTPResponse(client)
    response.begin()
    return response


def test_requests_above_the_limit_wait(tmp_path: Path) -> None:
    """All get their answer, also before a replica has reported its rate."""
    with service(tmp_path, headers={}) as running:
        clients = [running.ask(str(n)) for n in range(8)]
        running.replica.step(8)
        assert [read(client) for client in clients] == [(200, b"ok")] * 8


def test_a_request_that_cannot_be_in_time_is_refused_at_once(tmp_path: Path) -> None:
    """The queue, at the reported rate, is longer than the client waits. Others wait, and Retry-After is the wait."""
    with service(tmp_path) as running:
        holder, patient = running.occupy(), running.ask("patient")
        running.wait_for_queue(1)
        for header in ("X-Request-Timeout-Ms: 1500", "X-Request-Timeout-Seconds: 1"):
            refusal = head(running.ask("hasty", header))
            problem = json.loads(refusal.read())
            assert (refusal.status, problem["code"]) == (503, "overloaded")
            assert refusal.getheader("retry-after") == str(problem["retry_after_s"]) == "3"
        running.replica.step(2)
        assert (read(holder)[0], read(patient)[0]) == (200, 200)


def test_a_refusal_of_a_patient_client_is_delayed(tmp_path: Path) -> None:
    """Clients that send again at once would take the machine's CPU time; the answer is the same."""
    slow = {"X-Busy-Us": "40000000", "X-Deadline-Ms": "30000"}

    def quick(text: str) -> str:
        assert "timeout tarpit 5s" in text
        return text.replace("timeout tarpit 5s", "timeout tarpit 1s")

    with service(tmp_path, slow, quick) as running:
        running.occupy()
        running.ask("waits for the timeout of the queue")
        running.wait_for_queue(1)
        start = time.monotonic()
        refusal = head(running.ask("refused"))
        assert time.monotonic() - start > 0.5
        assert (refusal.status, json.loads(refusal.read())["code"]) == (503, "overloaded")
        assert refusal.getheader("retry-after") == "81"


def test_callers_take_turns(tmp_path: Path) -> None:
    """Of one with many requests and one with a single one, the first of each go before the rest."""
    with service(tmp_path) as running:
        running.occupy()
        for n in range(6):
            running.ask(f"heavy {n}", "X-API-Key: heavy")
            running.wait_for_queue(n + 1)  # connections opened at once are accepted in any order
        running.ask("light", "Authorization: Bearer light")
        running.wait_for_queue(7)
        running.replica.step(2)
        assert [running.replica.next()[1] for _ in range(2)] == [b"heavy 0", b"light"]


def test_a_caller_with_few_requests_is_not_refused_for_the_queue_of_another(tmp_path: Path) -> None:
    """The long queue refuses more of its own caller; the other one waits for its turn only."""
    with service(tmp_path) as running:
        holder = running.occupy()
        heavy = [running.ask(f"heavy {n}", "X-API-Key: heavy") for n in range(8)]
        running.wait_for_queue(8)
        impatient = "X-Request-Timeout-Ms: 5000"
        assert read(running.ask("heavy", "X-API-Key: heavy", impatient))[0] == 503
        light = running.ask("light", "X-API-Key: light", impatient)
        running.replica.step(10)
        assert {read(client)[0] for client in (holder, light, *heavy)} == {200}


def test_health_checks_go_first(tmp_path: Path) -> None:
    """Those who watch the service must not wait behind photos."""
    with service(tmp_path) as running:
        running.occupy()
        for n in range(4):
            running.ask(str(n))
        running.wait_for_queue(4)
        running.send(get(HEALTH_PATHS[0], AGENT))
        running.wait_for_queue(5)
        running.replica.step()
        assert running.replica.next() == (HEALTH_PATHS[0], b"")


def test_a_request_leaves_the_queue_in_the_end(tmp_path: Path) -> None:
    """A replica that has stopped: 503 as for a queue that is too long, after the longest time of a request."""
    assert LimitsConfig().deadline_s == QUEUE_TIMEOUT_S

    def quick(text: str) -> str:
        assert "timeout queue 30s" in text
        return text.replace("timeout queue 30s", "timeout queue 1s")

    with service(tmp_path, edit=quick) as running:
        running.occupy()
        waiting = running.ask("waits")
        running.wait_for_queue(1)
        waiting_too = head(running.ask("waits too"))
        assert (read(waiting)[0], waiting_too.status) == (503, 503)
        assert json.loads(waiting_too.read())["code"] == "overloaded"
        assert waiting_too.getheader("retry-after") == "3"


@pytest.mark.parametrize("agent", [AGENT, "X-None: 1"], ids=("once", "twice"))
def test_the_replica_learns_when_and_whence_a_request_came(tmp_path: Path, agent: str) -> None:
    """What the client claims is removed; what the replica reports does not reach the client."""
    with service(tmp_path) as running:
        before = time.time() * 1000
        claims = ("X-Client-Address: 192.0.2.1", "X-Request-Start: t=1")
        client = running.send(post("/v1/classify", agent, *claims))
        request = running.replica.requests.get(timeout=TIMEOUT_S).decode().lower()
        assert re.findall(r"x-client-address: (\S+)", request) == ["127.0.0.1"]
        (start,) = re.findall(r"x-request-start: t=(\d+)", request)
        assert before - 1 <= int(start) <= time.time() * 1000
        running.replica.step()
        response = head(client)
        assert response.status == 200
        assert not [name for name in response.headers if name.lower().startswith(("x-busy", "x-deadline"))]
