"""What the real HAProxy answers by itself, with the configuration that Ray renders and we complete."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import termios
import time
from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path

import pytest
import tritonclient.http as triton
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from tritonclient.utils import InferenceServerException

from serve_app.launcher.environment import free_port
from tests.support.haproxy import haproxy, replica

GET = b'GET /v1/status HTTP/1.1\r\nHost: api\r\nX-Request-ID: mine-"1"\r\n\r\n'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"POST /v1/classify HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n"


def quick(config: str) -> str:
    """A second instead of thirty."""
    return config.replace("timeout http-request 30s", "timeout http-request 1s")


def answer(connection: socket.socket, _request: bytes) -> bool:
    """Answer 200."""
    connection.sendall(OK)
    return True


def lose(_connection: socket.socket, _request: bytes) -> bool:
    """Close the connection without an answer."""
    return False


def stay_silent(connection: socket.socket, _request: bytes) -> bool:
    """Answer nothing until HAProxy closes the connection."""
    return bool(connection.recv(1))


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
        assert problem["error"] == problem["message"] == problem["detail"]  # for clients of other protocols
        return response.status, problem


def test_a_malformed_body_is_a_problem(tmp_path: Path) -> None:
    with replica(answer) as replica_port, haproxy(tmp_path, replica_port, edit=quick) as port:
        status, problem = exchange(port, CHUNKED, b"no length\r\n")
    assert (status, problem["status"], problem["code"]) == (400, 400, "malformed")


def test_a_slow_body_is_a_problem(tmp_path: Path) -> None:
    with replica(answer) as replica_port, haproxy(tmp_path, replica_port, edit=quick) as port:
        status, problem = exchange(port, CHUNKED)
    assert (status, problem["status"], problem["code"]) == (408, 408, "slow_body")


def test_no_replica_is_a_problem_with_the_clients_request_id(tmp_path: Path) -> None:
    with haproxy(tmp_path, free_port()) as port:
        status, problem = exchange(port, GET)
    assert (status, problem["status"], problem["code"]) == (503, 503, "not_ready")
    assert problem["request_id"] == 'mine-"1"'


def test_clients_of_other_protocols_read_haproxys_answers(tmp_path: Path) -> None:
    """Hugging Face's and NVIDIA's own clients show the sentence."""
    with haproxy(tmp_path, free_port()) as port:
        with pytest.raises(HfHubHTTPError) as refused:
            InferenceClient(model=f"http://127.0.0.1:{port}").image_classification(b"image")
        assert refused.value.response.status_code == 503
        assert refused.value.server_message == "no replica of the service took this request; try again"
        with (
            triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
            pytest.raises(InferenceServerException, match=r"try again$"),
        ):
            client.get_server_metadata()


def test_a_lost_replica_is_a_problem(tmp_path: Path) -> None:
    """The replica took the request and closed the connection without an answer: HAProxy's 502."""
    with replica(lose) as replica_port, haproxy(tmp_path, replica_port) as port:
        status, problem = exchange(port, GET)
    assert (status, problem["status"], problem["code"]) == (503, 503, "not_ready")


def test_a_silent_replica_is_a_problem(tmp_path: Path) -> None:
    with replica(stay_silent) as replica_port, haproxy(tmp_path, replica_port, timeout_server_s=1) as port:
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
