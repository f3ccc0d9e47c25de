"""Which ports the run command opens, and on which addresses."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address

import psutil

from tests.support.running import Running
from tests.support.services import FullService


def listening(service: Running) -> dict[int, tuple[str, str]]:
    """Address and program behind each TCP port on which a process of this service listens."""
    found = {}
    for process in service.processes():
        with suppress(psutil.Error):
            for each in process.net_connections("tcp"):
                if each.status == psutil.CONN_LISTEN:
                    found[each.laddr.port] = (each.laddr.ip, process.name())
    return found


def beyond_loopback(service: Running) -> dict[int, tuple[str, str]]:
    return {port: found for port, found in listening(service).items() if not is_loopback(found[0])}


def is_loopback(address: str) -> bool:
    """Also 127.0.0.1 as a socket for both families writes it, ::ffff:127.0.0.1."""
    plain = ip_address(address)
    return (getattr(plain, "ipv4_mapped", None) or plain).is_loopback


def ports(service: Running) -> set[int]:
    """Of page and API."""
    return {int(url.rpartition(":")[2]) for url in (service.page, service.api)}


def test_nothing_listens_beyond_loopback(running: Running) -> None:
    """On a café's Wi-Fi nobody reaches Ray, its replicas, HAProxy's own ports, the API or the page."""
    assert ports(running) < set(listening(running))  # and more than those two were looked at
    assert beyond_loopback(running) == {}


def test_asked_to_only_page_and_api_do(full_service: FullService) -> None:
    """`make run HOST=0.0.0.0` opens API and page and no other port, also with the HAProxy of our image."""
    assert set(beyond_loopback(full_service.running)) == ports(full_service.running)
