"""Keys that are in force stay in force on the running service, whatever a raw `serve deploy` leaves out."""

from __future__ import annotations

import httpx2
import pytest

from serve_app.http.auth import create_key
from serve_app.launcher.haproxy import has_loopback_6
from serve_app.release.rollout import ServeApi, previous_config
from tests.support.configs import tuned
from tests.support.photos import make_photo
from tests.support.running import Running
from tests.support.services import APPLY_TIMEOUT_S


def test_a_config_without_keys_does_not_remove_them(running: Running, cluster: ServeApi) -> None:
    """The replicas refuse it, keep serving with the old settings and say so; `open: true` is accepted."""
    before = previous_config(cluster.state())
    key, line = create_key("alice")
    name, hashed = line.split()
    headers, url = {"X-API-Key": key}, f"{running.api}/v1/classify"
    try:
        cluster.apply(tuned(before, "Ingress", keys={"hashes": {name: hashed}}), APPLY_TIMEOUT_S)
        assert httpx2.post(url, content=make_photo()).status_code == 401
        cluster.apply(before, APPLY_TIMEOUT_S)
        assert httpx2.post(url, content=make_photo()).status_code == 401
        assert httpx2.post(url, content=make_photo(), headers=headers).status_code == 200
        refused = httpx2.get(f"{running.api}/v1/status", headers=headers).json()["refused"]
        assert "required a key until now" in refused
    finally:
        cluster.apply(tuned(before, "Ingress", open=True), APPLY_TIMEOUT_S)
    assert httpx2.post(url, content=make_photo()).status_code == 200
    assert httpx2.get(f"{running.api}/v1/status").json()["refused"] is None


@pytest.mark.skipif(not has_loopback_6(), reason="this machine has no ::1")
def test_both_loopback_addresses_answer(running: Running) -> None:
    port = running.api.rpartition(":")[2]
    for host in ("127.0.0.1", "[::1]", "localhost"):
        assert httpx2.post(f"http://{host}:{port}/v1/classify", content=make_photo()).status_code == 200


@pytest.mark.parametrize("count", [101, 1000])
def test_many_headers_are_no_mistake(running: Running, count: int) -> None:
    headers = {"Content-Type": "image/jpeg"} | {f"X-Gateway-{number}": str(number) for number in range(count)}
    assert httpx2.post(f"{running.api}/v1/classify", content=make_photo(), headers=headers).status_code == 200
