"""Hostile requests to the running service: each gets its 4xx or its answer, and no replica dies of one."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import httpx2
import pytest

from serve_app.release.rollout import ServeApi, previous_config
from tests.fuzz.http import attack, failures, replicas
from tests.support.configs import tuned
from tests.support.photos import make_photo
from tests.support.running import Running
from tests.support.services import APPLY_TIMEOUT_S

DEADLINE_S = 15
CLIENTS = 16


def test_fuzzed_requests_hurt_nobody(running: Running, cluster: ServeApi) -> None:
    """300 mutated images and broken requests: no 5xx, no missing answer, the same processes afterwards."""
    # Some requests announce more bytes than they send: the service refuses them when their time is over.
    limits = {"deadline_s": DEADLINE_S}
    cluster.apply(tuned(previous_config(cluster.state()), "Ingress", limits=limits), APPLY_TIMEOUT_S)
    before = replicas(running.dashboard)
    outcomes = attack(running.api, range(300), seed=0, clients=CLIENTS)
    assert failures(outcomes) == []
    assert len({outcome.status for outcome in outcomes}) > 3
    assert replicas(running.dashboard) == before
    assert httpx2.get(f"{running.api}/readyz").status_code == 200


def test_slow_senders_keep_nobody_waiting(running: Running) -> None:
    """The service answers a request while it still waits for the rest of fifty others."""
    parts = urlsplit(running.api)
    head = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nContent-Length: 1000000\r\n\r\n"
    slow = [socket.create_connection((parts.hostname, parts.port)) for _ in range(50)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall(head[: 30 + number] if number % 2 else head + b"\xff\xd8\xff")
        response = httpx2.post(f"{running.api}/v1/classify", content=make_photo(), timeout=30)
        assert response.status_code == 200
        for connection in slow:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):  # neither answered nor closed
                connection.recv(1)
    finally:
        for connection in slow:
            connection.close()


def test_ray_serve_and_other_sites_get_no_say(running: Running) -> None:
    """Behind HAProxy and Ray Serve too: control headers, strange ids, foreign hosts and origins, HEAD and slashes."""
    url, photo = f"{running.api}/v1/classify", make_photo()
    for headers in (
        {"X-Request-ID": "not accepted"},
        {"X-Request-Disconnect-Disabled": "?1", "X-Session-ID": "a", "serve_multiplexed_model_id": "b"},
        {"X-Request-Timeout-Seconds": "20", "traceparent": "00-1-2-01"},
    ):
        response = httpx2.post(f"{url}/", content=photo, headers=headers)
        assert response.status_code == 200, headers
        assert response.headers.get_list("x-request-id") == [response.json()["id"]]
        assert "not accepted" not in response.text
    assert httpx2.post(url, content=photo, headers={"X-Request-Timeout-Seconds": "0"}).status_code == 422
    assert httpx2.get(f"{running.api}/v1/models", headers={"X-Request-Timeout-Seconds": "0.00001"}).status_code == 200
    assert httpx2.post(url, content=photo, headers={"Host": "evil.example"}).status_code == 421
    assert httpx2.post(url, content=photo, headers={"Origin": "https://evil.example"}).status_code == 403
    assert httpx2.put(url, content=photo).status_code == 405
    assert httpx2.head(f"{running.api}/v1/status/").status_code == 200
