"""How many requests, downloads and connections HAProxy lets in, as HAProxy's directives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from serve_app.launcher.haproxy_answers import ADDRESS_OVERLOADED, OVERLOADED, TOO_MANY_DOWNLOADS, reply

REDUCED_SHARE = 0.55  # of the limit: requests that are let in while others have to be refused
DOWNLOAD_SHARE = 0.25  # of the limit: downloads of results in flight
ADDRESS_SHARE = 0.5  # of the limit: requests of one address in flight
HEALTH_PATHS = "/healthz /readyz /ping /v2/health/live /v2/health/ready"  # those of http/cross_site.py
OVERLOAD = "overload"  # names the stick table and the variable with which HAProxy counts refusals
SERVERS = f"txn.{OVERLOAD}_servers"  # HAProxy variable: replicas that are up
COUNTERS = 4  # sc0 overload, sc1 connections of an address, sc2 requests of an address, sc3 downloads
ADDRESS = "src,ipmask(32,64)"  # an IPv6 client has a whole /64
REMOTE = "!{ src 127.0.0.0/8 ::1 }"  # the page and proxies of this machine call for many clients
TABLES = f"""\
backend {OVERLOAD}
    stick-table type integer size 1 expire 5s store gpc0_rate(1s)
backend downloads
    stick-table type integer size 1 expire 5s store conn_cur
backend address_connections
    stick-table type ipv6 size 100k expire 60s store conn_cur
backend address_requests
    stick-table type ipv6 size 100k expire 60s store conn_cur
"""


def refuse_overload(condition: str, backend: str, limit: int) -> Iterator[str]:
    """Yield rules that refuse requests above the limit.

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
        f"{{ sc0_gpc0_rate({OVERLOAD}) gt 0 }} {{ be_conn_free{backend},div({SERVERS}) le {spare} }}",
    )
    refused = " or ".join(f"{condition}{reason} !{{ path {HEALTH_PATHS} }}" for reason in full)
    yield f"http-request track-sc0 int(1) table {OVERLOAD}"
    yield f"http-request set-var({SERVERS}) nbsrv{backend}"
    yield f"http-request sc-inc-gpc0(0) if {refused}"
    yield f"http-request return status {OVERLOADED.status} {reply(OVERLOADED)} if {refused}"


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


def refuse_address(condition: str, backend: str, limit: int) -> Iterable[str]:
    """Return rules that keep one address from taking all places; the arguments are those of `refuse_downloads`."""
    most = max(1, round(ADDRESS_SHARE * limit))
    full = f"{{ nbsrv{backend} gt 0 }} {{ sc_conn_cur(2,address_requests),div({SERVERS}) gt {most} }}"
    return (
        f"http-request track-sc2 {ADDRESS} table address_requests if {condition}{REMOTE}",
        f"http-request return status {ADDRESS_OVERLOADED.status} {reply(ADDRESS_OVERLOADED)} if {condition}{full}",
    )


def reject_connections(limit: int) -> Iterable[str]:
    """Return rules that close a new connection at once if its address has more than ``limit`` already."""
    return (
        f"tcp-request connection track-sc1 {ADDRESS} table address_connections if {REMOTE}",
        f"tcp-request connection reject if {{ sc_conn_cur(1,address_connections) gt {limit} }}",
    )
