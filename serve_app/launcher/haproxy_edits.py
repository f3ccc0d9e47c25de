"""Edits of the HAProxy configuration that Ray Serve writes. Written against Ray 2.60.0 and HAProxy 2.8.

Ray renders the text from ray/serve/_private/haproxy_templates.py and has no setting for what is changed here. A
public setting of Ray for extra lines of configuration would replace this file. Each edit looks for an anchor, a line
of Ray's text, and says how often the anchor must be there. Another count stops the start.

- Retries. HAProxy can send a request to another replica only if it has all of the request before it sends the first
  byte (``option http-buffer-request``), and does so only if the request may be repeated (haproxy_answers.py).
  ``timeout http-request`` ends slow senders, for whom HAProxy would wait an hour. ``tune.memory.hot-size`` keeps
  buffers of one image for the next request: allocating them from the system took 0.3 ms of 0.7 ms per request.
- The queue (haproxy_limits.py). A replica gets as many requests at a time as its Python can hold; the others wait in
  HAProxy, or are refused there if they would wait too long. A thousand refusals a second in Python would keep the
  replica from answering health checks, and HAProxy would send all traffic to Ray's fallback proxy, one process.
- Limits of downloads, large uploads and connections (haproxy_limits.py).
- Slow readers. HAProxy closes a connection whose client takes nothing for ``RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S``. It
  notices progress when a third of the socket's send buffer is free again, so ``tune.sndbuf.client`` decides how much
  the client has to take in that time. docs/security.md has the measured rates.
- Half-closed connections, see ``patient_backend``.
- Headers. HAProxy's default, 101 per request, is too few for clients behind several gateways.
- Errors. HAProxy's own answers become application/problem+json.
- Replicas. While Ray builds a new version of the application, which takes seconds, its configuration lists no
  replica: those of the previous configuration stay until Ray lists others.
- Ports. On one machine only the API may listen beyond loopback; statistics and metrics move to Unix sockets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.launcher.haproxy_answers import (
    REQUEST_TIMEOUT_S,
    error_directives,
    lost_rules,
    not_taken_rules,
    request_id_rule,
)
from serve_app.launcher.haproxy_limits import (
    COUNTERS,
    QUEUE_TIMEOUT_S,
    REFUSAL_DELAY_S,
    TABLES,
    identify_caller,
    learn_rate,
    refuse_downloads,
    refuse_large_uploads,
    reject_connections,
    wait_in_turn,
)

HOT_BYTES = 8 << 20  # memory that each thread keeps for its next buffers
PATIENT = "patient"  # names a backend and a socket, see `patient_backend`
FROM_CLIENT = f"!{{ so_name {PATIENT} }}"
HANDWRITTEN = ("!{ req.hdr(user-agent) -m found }", "{ req.ver 1.0 }")
MAX_HEADERS = 2048  # of one request
SEND_BUFFER_BYTES = 256 << 10  # Linux doubles it
BACKEND = re.compile(r"^backend (\S+)\n(?:[ #\n].*\n?|\n)*", re.MULTILINE)
SERVER = re.compile(r"^ *server .*\n", re.MULTILINE)
Replicas = Mapping[str, Sequence[str]]  # `server` lines by backend


class ConfigurationError(Exception):
    """HAProxy's configuration cannot be completed; one sentence says why and what to do."""


@dataclass(frozen=True)
class Options:
    """What the environment decides about the configuration.

    Attributes:
        folder: Folder of the configuration, for Unix sockets.
        max_requests: Requests that one ingress replica may have at a time.
        api_host: Address on which the API listens while all other ports are closed; None leaves ports as Ray has them.
        loopback_6: Whether the API listens on ::1 besides ``api_host``.
        max_address_connections: Connections of one address beyond loopback; 0 sets no limit per address.
    """

    folder: Path
    max_requests: int
    api_host: str | None
    loopback_6: bool = False
    max_address_connections: int = 0


@dataclass(frozen=True)
class Edit:
    r"""A change of each line of Ray's text that matches an anchor.

    Attributes:
        anchor: Regular expression of a whole line, without its indent.
        lines: Lines that take its place; `\g<0>` is the old line, `\2` the anchor's first group.
        times: Lines that must match.
    """

    anchor: str
    lines: tuple[str, ...]
    times: int = 1

    def apply(self, config: str) -> str:
        """Return the text with this change.

        Raises:
            ConfigurationError: The anchor matches more lines or fewer.
        """
        indented = (line if line.startswith(r"\g<0>") else rf"\1{line}\n" for line in self.lines)
        config, times = re.subn(rf"^( *){self.anchor}\n", "".join(indented), config, flags=re.MULTILINE)
        if times != self.times:
            from importlib.metadata import version  # 30 ms, which no start without an error pays

            raise ConfigurationError(
                f"the line `{self.anchor}` is {times} times in the configuration that Ray {version('ray')} writes, "
                f"not {self.times} times: compare serve_app/launcher/haproxy_edits.py with "
                "ray/serve/_private/haproxy_templates.py, or serve without HAProxy (RAY_SERVE_ENABLE_HA_PROXY)"
            )
        return config


KEEP = r"\g<0>"


def complete(config: str, options: Options) -> str:
    """Return Ray's configuration with all edits.

    Args:
        config: As Ray wrote it.
        options: From the environment.

    Raises:
        ConfigurationError: An anchor is not there as often as expected.
    """
    for edit in edits(config, options):
        config = edit.apply(config)
    return config + TABLES + patient_backend(options.folder)


def edits(config: str, options: Options) -> list[Edit]:
    """Return the edits for a configuration, which decides how often some of them apply."""
    backends = len(BACKEND.findall(config)) - 1  # all but the one that answers 404
    servers = len(SERVER.findall(config))
    tuning = (
        f"tune.memory.hot-size {HOT_BYTES}",
        f"tune.http.maxhdr {MAX_HEADERS}",
        f"tune.sndbuf.client {SEND_BUFFER_BYTES}",
        f"tune.stick-counters {COUNTERS}",
    )
    timeouts = (
        f"timeout http-request {REQUEST_TIMEOUT_S}s",
        f"timeout queue {QUEUE_TIMEOUT_S}s",
        f"timeout tarpit {REFUSAL_DELAY_S}s",
    )
    changes = [
        Edit(r"tune\.bufsize \d+", (KEEP, *tuning)),
        Edit(r"option abortonclose", (KEEP, *timeouts)),
        Edit(r"errorfile 502 \S+", tuple(error_directives())),
        Edit(r"errorfile 50[34] \S+", (), 2),
        Edit(r"frontend http_frontend", (KEEP, *(f"    {line}" for line in _frontend_lines(options)))),
        Edit(r"use_backend (\S+) if (is_\2)", (*_routing_lines(options), KEEP), backends),
        Edit(r"http-reuse always", (KEEP, "option http-buffer-request", *learn_rate()), backends),
        Edit(r"(server .*? check)(.*)", (rf"\2 maxconn {options.max_requests}\3",), servers),
    ]
    if options.api_host:
        binds = [rf"bind {'*' if options.api_host == '0.0.0.0' else options.api_host}:\2"]
        # Without v6only a reload closes the IPv4 address: HAProxy then does not recognize the socket that it takes over
        # and pauses the old process, which shuts the shared sockets down (2.8.25).
        binds += [r"bind [::1]:\2 v6only"] * options.loopback_6
        changes += [
            Edit(r"bind :\d+", (f"bind unix@{options.folder / 'metrics'}",)),
            Edit(r"bind \*:\d+", (f"bind unix@{options.folder / 'stats'}",)),
            Edit(r"bind 127\.0\.0\.1:(\d+)", tuple(binds)),
        ]
    return changes


def patient_backend(folder: Path) -> str:
    """Return the backend for clients that may close their half of the connection and then wait for the response.

    RFC 9112 (section 9.6) permits that, and HAProxy cannot tell it from a client that left. ``option abortonclose``,
    which Ray sets, takes both for a client that left: it cancels the work and answers 400. Without that option HAProxy
    does not notice that a client left. The option belongs to a whole backend, and HAProxy's rules cannot see whether a
    request says ``Connection: close``. HTTP libraries and browsers name themselves and never half-close; programs that
    write HTTP by hand do, such as `nc -N`. So requests without User-Agent, and those of HTTP/1.0, pass HAProxy twice:
    the server of this backend, which has no ``abortonclose``, is HAProxy's own frontend. The second pass writes log
    line and metrics.
    """
    return f"""\
backend {PATIENT}
    no option abortonclose
    option http-buffer-request
    http-reuse always
    http-request set-log-level silent
    server frontend unix@{folder / PATIENT}
"""


def keep_replicas(config: str, previous: Replicas) -> str:
    """Return a configuration in which backends without a replica have those of the previous configuration.

    Replicas that have ended fail HAProxy's checks, and Ray's fallback proxy stays behind them.

    Args:
        config: Complete.
        previous: What `replicas` returned for the configuration that this one takes over from.
    """

    def insert(backend: re.Match[str]) -> str:
        text, lines = backend[0], previous.get(backend[1], ())
        if not lines or _replica_lines(text):
            return text
        fallback = SERVER.search(text)
        at = fallback.start() if fallback else len(text)
        return text[:at] + "".join(lines) + text[at:]

    return BACKEND.sub(insert, config)


def replicas(config: str) -> Replicas:
    """Return the replicas of each backend that has one."""
    lines = {backend[1]: _replica_lines(backend[0]) for backend in BACKEND.finditer(config)}
    return {name: servers for name, servers in lines.items() if servers}


def _replica_lines(backend: str) -> list[str]:
    return [line for line in SERVER.findall(backend) if " backup" not in line]


def _frontend_lines(options: Options) -> Iterator[str]:
    """Yield the lines at the head of the frontend."""
    yield f"bind unix@{options.folder / PATIENT} mode 600 name {PATIENT}"
    if options.max_address_connections:
        yield from reject_connections(options.max_address_connections)
    yield f"http-request {request_id_rule()}"
    yield from lost_rules()
    yield from not_taken_rules()
    yield from identify_caller(FROM_CLIENT)


def _routing_lines(options: Options) -> Iterator[str]:
    r"""Yield the lines before a backend's ``use_backend``; `\2` is the backend, `\3` the condition of its traffic."""
    condition, backend, limit = r"\3 ", r"(\2)", options.max_requests
    yield from wait_in_turn(condition, backend, limit)
    yield from refuse_downloads(f"{condition}{FROM_CLIENT} ", backend, limit)
    if options.max_address_connections:
        yield from refuse_large_uploads(f"{condition}{FROM_CLIENT} ", backend, limit)
    yield f"use_backend {PATIENT} if " + " or ".join(f"{condition}{each} {FROM_CLIENT}" for each in HANDWRITTEN)
