"""Which ports the run command opens, and on which addresses."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address

import psutil

from tests.support.polling import wait_for
from tests.support.running import Running
from tests.support.services import FullService


def listening(service: Running) -> set[tuple[int, str, str]]:
    """Return port, address and program of each TCP listener of this service; HAProxy has one per address."""
    listeners = set()
    for process in service.processes():
        with suppress(psutil.Error):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    listeners.add((connection.laddr.port, connection.laddr.ip, process.name()))
    return listeners


def beyond_loopback(service: Running) -> set[int]:
    """Return the ports that other machines can reach."""
    return {port for port, address, _ in listening(service) if not is_loopback(address)}


def is_loopback(address: str) -> bool:
    """Return whether an address is loopback; ::ffff:127.0.0.1 is 127.0.0.1 of a socket for both families."""
    plain = ip_address(address)
    return (getattr(plain, "ipv4_mapped", None) or plain).is_loopback


def ports(service: Running) -> set[int]:
    """Return the ports of page and API."""
    return {int(url.rpartition(":")[2]) for url in (service.page, service.api)}


def test_nothing_listens_beyond_loopback(running: Running) -> None:
    """Other machines of the network reach neither Ray, replicas and HAProxy nor API and page."""
    assert ports(running) < {port for port, _, _ in listening(running)}  # the check covers more than those two
    assert beyond_loopback(running) == set()


def test_asked_to_only_page_and_api_do(full_service: FullService) -> None:
    """`make run HOST=0.0.0.0` opens API and page and no other port, also with the HAProxy of our image."""
    service = full_service.running
    # HAProxy hands the port to a new process at each reload.
    wait_for(lambda: beyond_loopback(service) == ports(service), what="page and API, and nothing else")
