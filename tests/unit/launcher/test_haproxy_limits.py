"""How much the real HAProxy lets a client hold: headers, connections, places, and time to read."""

from __future__ import annotations

import json
import queue
import socket
from contextlib import closing
from pathlib import Path

import pytest

from serve_app.exposure import API_HOST
from serve_app.launcher.haproxy import MAX_ADDRESS_CONNECTIONS, MAX_INGRESS_REQUESTS, has_loopback_6
from serve_app.launcher.haproxy_limits import LARGE_BODY_BYTES
from tests.support.haproxy import haproxy, reloaded, replica
from tests.support.haproxy_client import TIMEOUT_S, HeldReplica, answer, connect, get, post, read
from tests.support.polling import wait_for


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


LARGE = bytes(LARGE_BODY_BYTES + 1)


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

        idle: list[socket.socket] = []

        def fill() -> bool:
            # The fixture's own connection may still count, so one of the first three may have been refused.
            idle.append(connect(api))
            return len(idle) >= 3 and ask() == 0

        wait_for(fill, what="a refused connection")
        for connection in idle:
            connection.close()
        wait_for(lambda: ask() == 200, what="a free connection")


def test_one_address_gets_a_part_of_the_places_for_large_bodies(tmp_path: Path) -> None:
    """Half of them, because such a body arrives while it holds its place; the refusal says why. Photos wait."""
    service = HeldReplica()
    limits = {MAX_ADDRESS_CONNECTIONS: "100", MAX_INGRESS_REQUESTS: "4"}
    with replica(service.respond) as port, haproxy(tmp_path, port, environment=limits, edit=from_elsewhere) as api:
        clients = [connect(api) for _ in range(2)]
        for client in clients:
            client.sendall(post("/v1/classify", "Connection: close", body=LARGE))
            service.requests.get(timeout=TIMEOUT_S)
        with closing(connect(api)) as third:
            third.sendall(post(body=LARGE))
            status, body = read(third)
        assert (status, json.loads(body)["code"]) == (503, "overloaded")
        assert "your address" in json.loads(body)["detail"]
        clients += [connect(api) for _ in range(5)]
        for client in clients[2:]:
            client.sendall(post())
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
@pytest.mark.parametrize("api_host", ["127.0.0.1", "0.0.0.0"])
def test_both_loopback_addresses_answer(tmp_path: Path, api_host: str) -> None:
    """Also after a reload, in which one HAProxy takes the sockets over from another."""

    def ask() -> None:
        for host in ("127.0.0.1", "::1"):
            with closing(connect(port, host)) as client:
                client.sendall(get("/v1/models"))
                assert read(client)[0] == 200

    host = {API_HOST: api_host}
    with replica(answer) as replica_port, haproxy(tmp_path, replica_port, environment=host) as port:
        ask()
        with reloaded(tmp_path):
            ask()
