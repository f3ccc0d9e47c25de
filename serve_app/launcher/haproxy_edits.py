"""Edits of the HAProxy configuration that Ray Serve writes. Written against Ray 2.60.0 and HAProxy 2.8.

Ray renders the text from ray/serve/_private/haproxy_templates.py and has no setting for what is changed here. A
public setting of Ray for extra lines of configuration would replace this file. Each edit looks for an anchor, a line
of Ray's text, and says how often the anchor must be there. Another count stops the start.

- Retries. HAProxy can send a request to another replica only if it has all of the request before it sends the first
  byte (``option http-buffer-request``). ``timeout http-request`` ends slow senders, for whom HAProxy would wait an
  hour. ``tune.memory.hot-size`` keeps buffers of one image for the next request: allocating them from the system took
  0.3 ms of 0.7 ms per request.
- Overload. HAProxy refuses requests before it reads their bodies. A replica knows better how many images are in
  flight, but a thousand refusals a second keep the replica from answering health checks, and HAProxy then sends all
  traffic to Ray's fallback proxy, one Python process.
- Errors. HAProxy's own answers become application/problem+json.
- Replicas. While Ray builds a new version of the application, which takes seconds, its configuration lists no
  replica: those of the previous configuration stay until Ray lists others.
- Ports. On one machine only the API may listen beyond loopback; statistics and metrics move to Unix sockets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import (
    DeadlineExceededError,
    MalformedRequestError,
    NotReadyError,
    OverloadedError,
    ServiceError,
    SlowBodyError,
)

REQUEST_TIMEOUT_S = 30  # for the head of a request and for the part of its body that fits HAProxy's buffer
HOT_BYTES = 8 << 20  # memory that each thread keeps for its next buffers
REDUCED_SHARE = 0.55  # of the limit: requests that are let in while others have to be refused
OVERLOAD = "overload"  # names the stick table and the variable with which HAProxy counts refusals
REQUEST_ID = "txn.problem_request_id"  # HAProxy variable: ',"request_id":"…"' if the client sent an id
OVERLOADED = OverloadedError("too many requests are in flight; try again")
# What HAProxy answers by itself, by status. A 502, a replica lost with a request that was too large to be sent
# again, has its own file: it becomes the 503 with which the service answers for lost replicas.
PROBLEMS: tuple[ServiceError, ...] = (
    ServiceError("the proxy failed on this request"),
    MalformedRequestError("this is not a valid HTTP/1.1 request"),
    SlowBodyError(f"the request did not arrive within {REQUEST_TIMEOUT_S} s"),
    NotReadyError("no replica of the service took this request; try again"),
    DeadlineExceededError("the service did not answer in time"),
)
LOST_FILE = "502.http"
BACKEND = re.compile(r"^backend (\S+)\n(?:[ #\n].*\n?|\n)*", re.MULTILINE)
SERVER = re.compile(r"^ *server .*\n", re.MULTILINE)
Replicas = Mapping[str, Sequence[str]]  # `server` lines by backend


class ConfigurationError(Exception):
    """HAProxy's configuration cannot be completed; one sentence says why and what to do."""


@dataclass(frozen=True)
class Options:
    """What the environment decides about the configuration.

    Attributes:
        folder: Folder of the configuration, for Unix sockets and the file of the 502 answer.
        max_requests: Requests that one ingress replica may have at a time.
        api_host: Address on which the API listens while all other ports are closed; None leaves ports as Ray has them.
    """

    folder: Path
    max_requests: int
    api_host: str | None


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
    (options.folder / LOST_FILE).write_text(_lost_response())
    for edit in edits(config, options):
        config = edit.apply(config)
    return config + f"backend {OVERLOAD}\n    stick-table type integer size 1 expire 5s store gpc0_rate(1s)\n"


def edits(config: str, options: Options) -> list[Edit]:
    """Return the edits for a configuration, which decides how often some of them apply."""
    backends = len(BACKEND.findall(config)) - 1  # all but the one that answers 404
    servers = len(SERVER.findall(config))
    by_status = [f"http-error status {error.status} {_reply(error)}" for error in PROBLEMS]
    request_id = "%[req.hdr(x-request-id),json(utf8s)]"
    set_request_id = (
        f"""set-var-fmt({REQUEST_ID}) ',"request_id":"{request_id}"' if {{ req.hdr(x-request-id) -m found }}"""
    )
    changes = [
        Edit(r"tune\.bufsize \d+", (KEEP, f"tune.memory.hot-size {HOT_BYTES}")),
        Edit(r"option abortonclose", (KEEP, f"timeout http-request {REQUEST_TIMEOUT_S}s")),
        Edit(r"errorfile 502 \S+", (f"errorfile 502 {options.folder / LOST_FILE}", *by_status)),
        Edit(r"errorfile 50[34] \S+", (), 2),
        Edit(r"frontend http_frontend", (KEEP, f"    http-request {set_request_id}")),
        Edit(
            r"use_backend (\S+) if (is_\2)",
            (*_refuse_overload(r"\3 ", r"(\2)", options.max_requests), KEEP),
            backends,
        ),
        Edit(
            r"http-reuse always",
            (KEEP, "option http-buffer-request", *_refuse_overload("", "", options.max_requests)),
            backends,
        ),
        Edit(r"(server .*? check)(.*)", (rf"\2 maxconn {options.max_requests}\3",), servers),
    ]
    if options.api_host:
        address = "*" if options.api_host == "0.0.0.0" else options.api_host
        changes += [
            Edit(r"bind :\d+", (f"bind unix@{options.folder / 'metrics'}",)),
            Edit(r"bind \*:\d+", (f"bind unix@{options.folder / 'stats'}",)),
            Edit(r"bind 127\.0\.0\.1:(\d+)", (rf"bind {address}:\2",)),
        ]
    return changes


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


def _refuse_overload(condition: str, backend: str, limit: int) -> Iterable[str]:
    """Return rules that refuse requests above the limit.

    The frontend has them before a body is read, the backend once more after it: a request takes no place while its
    body arrives. A place that is free while requests queue is about to be taken by one of those.

    After a refusal fewer requests are let in, until a second has passed without one: a queue that never empties makes
    everybody wait and serves nobody faster.

    Args:
        condition: Of the backend's traffic; empty inside the backend.
        backend: Argument of HAProxy's counters; empty inside the backend.
        limit: Requests that one replica may have at a time.
    """
    spare = limit - round(REDUCED_SHARE * limit)
    full = (
        f"{{ be_conn_free{backend} le 0 }}",
        f"{{ queue{backend} gt 0 }}",
        f"{{ sc0_gpc0_rate({OVERLOAD}) gt 0 }} {{ be_conn_free{backend},div(txn.{OVERLOAD}_servers) le {spare} }}",
    )
    refused = " or ".join(f"{condition}{reason} !{{ path /healthz /readyz }}" for reason in full)
    rules = (
        f"track-sc0 int(1) table {OVERLOAD}",
        f"set-var(txn.{OVERLOAD}_servers) nbsrv{backend}",
        f"sc-inc-gpc0(0) if {refused}",
        f"return status {OVERLOADED.status} {_reply(OVERLOADED)} if {refused}",
    )
    return (f"http-request {rule}" for rule in rules)


def _reply(error: ServiceError) -> str:
    """Return the arguments that make HAProxy answer with an error as the service does (http/responses.py)."""
    body = _problem(error).removesuffix("}") + f"%[var({REQUEST_ID})]}}"
    retry = f" hdr Retry-After {error.retry_after_s}" if error.retryable else ""
    return f"content-type application/problem+json{retry} lf-string '{body}'"


def _lost_response() -> str:
    error = NotReadyError("the replica that had this request was lost; try again")
    head = (
        "HTTP/1.1 503 Service Unavailable",
        "Content-Type: application/problem+json",
        f"Retry-After: {error.retry_after_s}",
        f"Content-Length: {len(_problem(error))}",
    )
    return "".join(f"{line}\r\n" for line in (*head, "")) + _problem(error)


def _problem(error: ServiceError) -> str:
    values: dict[str, object] = {
        "type": f"/problems/{error.code.replace('_', '-')}",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": str(error),
        "retryable": error.retryable,
    }
    if error.retryable:
        values["retry_after_s"] = error.retry_after_s
    return json.dumps(values)
