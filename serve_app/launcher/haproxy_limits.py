"""Which requests, downloads and connections HAProxy lets in, makes wait or refuses, as HAProxy's directives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from serve_app.launcher.haproxy_answers import (
    ADDRESS_OVERLOADED,
    QUEUE_TOO_LONG,
    RETRY_S,
    TOO_MANY_DOWNLOADS,
    queue_timeout_rule,
    reply,
)
from serve_app.proxy_headers import BUSY_US, CLIENT_ADDRESS, DEADLINE_MS, REQUEST_START

DOWNLOAD_SHARE = 0.25  # of the limit: downloads of results in flight
ADDRESS_SHARE = 0.5  # of the limit: large uploads of one address in flight
# A request holds a place while the part of its body arrives that does not fit HAProxy's buffer; configs/ray.env.
LARGE_BODY_BYTES = 1_000_000
QUEUE_TIMEOUT_S = 30  # as limits.deadline_s
# A refusal comes after this time if the request's deadline is far: clients that ignore Retry-After and send photo after
# photo would otherwise take the CPU time of a machine on which they and the model run.
REFUSAL_DELAY_S, FAR_DEADLINE_MS = 5, 20_000
HEALTH_PATHS = "/healthz /readyz /ping /v2/health/live /v2/health/ready"  # those of http/cross_site.py
COUNTERS = 4  # sc0 requests of a caller, sc1 connections of an address, sc2 large uploads of an address, sc3 downloads
ADDRESS = "src,ipmask(32,64)"  # an IPv6 client has a whole /64
REMOTE = "!{ src 127.0.0.0/8 ::1 }"  # the page and proxies of this machine call for many clients
TABLES = """\
backend callers
    stick-table type binary len 20 size 100k expire 1s store conn_cur
backend downloads
    stick-table type integer size 1 expire 5s store conn_cur
backend address_connections
    stick-table type ipv6 size 100k expire 60s store conn_cur
backend address_uploads
    stick-table type ipv6 size 100k expire 60s store conn_cur
"""
# HAProxy variables. A replica reports the first two with its responses, so they belong to the process.
BUSY, DEADLINE = "proc.busy_us", "proc.deadline_ms"
TIMEOUT, SERVERS, CALLERS = "txn.timeout_ms", "txn.servers", "txn.callers"
WAIT, TURNS = "txn.wait_us", "txn.turns_us"  # expected waits: behind all others, and if callers take turns


def identify_caller(from_client: str) -> Iterator[str]:
    """Yield rules that say who calls: an API key, else an address; and tell the replica when the request came.

    HAProxy cannot check a key. A wrong one is refused by the replica within milliseconds.

    Args:
        from_client: Condition of requests that pass HAProxy for the first time.
    """
    yield f"http-request set-header {CLIENT_ADDRESS} %[{ADDRESS}] if {from_client}"
    yield f"http-request set-header {REQUEST_START} t=%[date(0,ms)] if {from_client}"
    for header in (CLIENT_ADDRESS, "x-api-key", "authorization"):
        yield f"http-request set-var(txn.caller) req.hdr({header}) if {{ req.hdr({header}) -m found }}"
    yield "http-request track-sc0 var(txn.caller),sha1 table callers"


def learn_rate() -> Iterator[str]:
    """Yield rules for a backend that keep what a replica reports, and hide it from clients."""
    for variable, header in ((BUSY, BUSY_US), (DEADLINE, DEADLINE_MS)):
        yield f"http-response set-var({variable}) res.hdr({header}) if {{ res.hdr({header}) -m found }}"
        yield f"http-response del-header {header}"


def wait_in_turn(condition: str, backend: str, limit: int) -> Iterator[str]:
    """Yield rules that order the queue, and refuse a request that would wait until after its deadline.

    HAProxy orders its queue by time. A request counts as later by twice the time in which the replicas do the other
    requests of its caller. So a caller with 200 requests and one with a single one both get served, and nobody waits
    for ever. The expected wait is that of the whole queue, or the time in which each caller gets as many requests done
    as this one has, whichever is shorter.

    Args:
        condition: Of the backend's traffic.
        backend: Argument of HAProxy's counters.
        limit: Requests that one replica may have at a time.
    """
    for variable, value in (
        (SERVERS, f"nbsrv{backend}"),
        (CALLERS, "table_cnt(callers)"),
        (WAIT, f"queue{backend},div({SERVERS}),add({limit}),mul({BUSY})"),
        (TURNS, f"sc_conn_cur(0,callers),mul({CALLERS}),div({SERVERS}),add({limit}),mul({BUSY})"),
        (TIMEOUT, f"var({DEADLINE})"),
    ):
        yield f"http-request set-var({variable}) {value} if {condition}".rstrip()
    yield f"http-request set-var({WAIT}) var({TURNS}) if {{ var({TURNS}),sub({WAIT}) lt 0 }}"
    for header, unit in (("x-request-timeout-ms", ""), ("x-request-timeout-seconds", ",mul(1000)")):
        own = f"req.hdr({header}){unit}"
        shorter = f"{{ req.hdr({header}) -m found }} {{ {own},sub({TIMEOUT}) lt 0 }}"
        yield f"http-request set-var({TIMEOUT}) {own} if {shorter}"
    queued = f"{condition}{{ nbsrv{backend} gt 0 }} {{ queue{backend} gt 0 }}"
    late = f"{queued} {{ var({WAIT}),div(1000),sub({TIMEOUT}) gt 0 }} !{{ path {HEALTH_PATHS} }}"
    yield f"http-request set-var({RETRY_S}) var({WAIT}),div(1000000),add(1) if {queued} {{ var({WAIT}) -m found }}"
    yield queue_timeout_rule(queued)
    answer = f"{QUEUE_TOO_LONG.status} {reply(QUEUE_TOO_LONG, f'%[var({RETRY_S})]')}"
    yield f"http-request tarpit deny_status {answer} if {late} {{ var({TIMEOUT}),sub({FAR_DEADLINE_MS}) ge 0 }}"
    yield f"http-request return status {answer} if {late}"
    later_ms = f"sc_conn_cur(0,callers),mul({BUSY}),div({SERVERS}),div(500)"  # twice the µs, in ms
    yield f"http-request set-priority-offset {later_ms} if {condition}".rstrip()
    yield f"http-request set-priority-class int(-1) if {condition}{{ path {HEALTH_PATHS} }}"


def refuse_downloads(condition: str, backend: str, limit: int) -> Iterable[str]:
    """Return rules that keep slow downloads of results from taking all places.

    A request holds its place until the client has taken all but the last 2 MB of the response.

    Args:
        condition: Of the backend's traffic that comes from clients.
        backend: Argument of HAProxy's counters.
        limit: Requests that one replica may have at a time.
    """
    download = f"{condition}{{ path_end /results }}"
    most = max(1, round(DOWNLOAD_SHARE * limit))
    full = f"{{ nbsrv{backend} gt 0 }} {{ sc_conn_cur(3,downloads),div({SERVERS}) gt {most} }}"
    return (
        f"http-request track-sc3 int(1) table downloads if {download}",
        f"http-request return status {TOO_MANY_DOWNLOADS.status} {reply(TOO_MANY_DOWNLOADS)} if {download} {full}",
    )


def refuse_large_uploads(condition: str, backend: str, limit: int) -> Iterable[str]:
    """Return rules that keep one address from taking all places with bodies that arrive slowly.

    A body that fits HAProxy's buffer arrives before its request takes a place. The arguments are those of
    `refuse_downloads`.
    """
    most = max(1, round(ADDRESS_SHARE * limit))
    full = f"{{ nbsrv{backend} gt 0 }} {{ sc_conn_cur(2,address_uploads),div({SERVERS}) gt {most} }}"
    large = (f"{{ req.hdr_val(content-length) gt {LARGE_BODY_BYTES} }}", "{ req.hdr(transfer-encoding) -m found }")
    tracked = " or ".join(f"{condition}{REMOTE} {each}" for each in large)
    return (
        f"http-request track-sc2 {ADDRESS} table address_uploads if {tracked}",
        f"http-request return status {ADDRESS_OVERLOADED.status} {reply(ADDRESS_OVERLOADED)} if {condition}{full}",
    )


def reject_connections(limit: int) -> Iterable[str]:
    """Return rules that close a new connection at once if its address has more than ``limit`` already."""
    return (
        f"tcp-request connection track-sc1 {ADDRESS} table address_connections if {REMOTE}",
        f"tcp-request connection reject if {{ sc_conn_cur(1,address_connections) gt {limit} }}",
    )
