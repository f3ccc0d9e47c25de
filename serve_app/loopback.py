"""Keep a service of one machine to that machine: only its API and its page may be reached from elsewhere, if asked."""

from __future__ import annotations

import shlex
from pathlib import Path

ADDRESS = "127.0.0.1"
CHOICES = (ADDRESS, "0.0.0.0")
# Ray writes HAProxy's configuration with these two ports open on every address, and has no knob for that.
WRAPPER = """#!/bin/sh
for file; do
  case $file in
    *.cfg) sed -i -E -e 's/^( *bind )\\*?:({inner})$/\\1{loopback}:\\2/' -e 's/^( *bind ){loopback}:{port}$/\\1{host}:{port}/' "$file" ;;
  esac
done
exec {binary} "$@"
"""  # noqa: E501 # a shell's line


def wrap_haproxy(path: Path, binary: str, host: str, port: int, inner_ports: list[str]) -> None:
    """Write a program to run in HAProxy's place: it corrects the addresses in the configuration, then becomes HAProxy.

    Args:
        path: Of the program.
        binary: HAProxy itself.
        host: Where the API is to listen; Ray is told loopback, and binds its replicas there too.
        port: Of the API.
        inner_ports: Of statistics and metrics, which stay on loopback.
    """
    public = "*" if host == "0.0.0.0" else host
    path.write_text(
        WRAPPER.format(
            inner="|".join(inner_ports), loopback=ADDRESS, port=port, host=public, binary=shlex.quote(binary)
        )
    )
    path.chmod(0o700)
