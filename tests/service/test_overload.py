"""More than the service can do, on real Ray Serve behind its real proxy: refusals, deadlines, recovery, live limits.

``python -m tests.support.overload`` is the long trial, with figures.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.conftest import make_photo
from tests.service.test_deploy import deploy, deployed, wait_for
from tests.support.configs import tuned
from tests.support.http_client import Client, format_requests
from tests.support.load import closed_loop
from tests.support.overload import Watch, outcomes
from tests.support.running import Running

JPEG = {"content-type": "image/jpeg"}
Tune = Callable[..., None]


@pytest.fixture
def tune(running: Running) -> Iterator[Tune]:
    """Changes the Ingress's user_config while it runs; afterwards it is as it was."""
    before = deployed(running)

    def change(**values: Any) -> None:
        deploy(running, tuned(deployed(running), "Ingress", **values))

    yield change
    deploy(running, before)
    time.sleep(2)


def status(running: Running) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.get(f"{running.api}/v1/status", timeout=30).json()
    return found


def test_limits_are_live(running: Running, tune: Tune) -> None:
    """The same replica takes an image of 320 x 240, then finds it too large, for its own stage and the next."""
    replica_since = time.time() - status(running)["up_s"]
    photo = make_photo()
    for limits, code in (({"max_image_bytes": 100}, "too_large"), ({"max_pixels": 100}, "image_too_large")):
        assert httpx2.post(f"{running.api}/v1/classify", content=photo).status_code == 200
        tune(limits=limits)
        answer = wait_for(lambda: (a := httpx2.post(f"{running.api}/v1/classify", content=photo)).is_error and a, 30)
        assert (answer.status_code, answer.json()["code"]) == (413, code)
        tune(limits={})
        wait_for(lambda: httpx2.post(f"{running.api}/v1/classify", content=photo).status_code == 200, 30)
    assert time.time() - status(running)["up_s"] == pytest.approx(replica_since, abs=2)


async def test_overload_is_refused_and_passes(running: Running, tune: Tune, tmp_path: Path) -> None:
    """256 clients who never pause: 200 or a 503 that says when to come again, health answers, and then all is well."""
    tune(admission={"max_queue_wait_s": 0.05})
    await asyncio.sleep(2)
    image = tmp_path / "a.jpg"
    image.write_bytes(make_photo())
    url = urlsplit(f"{running.api}/v1/classify")
    storm, after = (Client(url, format_requests(url, [image], 1, None), 60) for _ in range(2))
    async with Watch(running.api, image.read_bytes()) as watch:
        await closed_loop(storm, 256, time.perf_counter() + 8)
    assert set(outcomes(storm)) == {"200", "503"}
    assert min(outcomes(storm).values()) > 50
    assert watch.health_ms
    assert watch.without_retry_after == 0
    await asyncio.sleep(1)
    await closed_loop(after, 4, time.perf_counter() + 3)
    assert set(outcomes(after)) == {"200"}
    storm.close()
    after.close()


@pytest.mark.parametrize(
    ("header", "text", "expected"),
    [
        # On a busy machine the time is over before the body is there.
        ("X-Request-Timeout-Ms", "1", {(504, "deadline_exceeded"), (408, "slow_body")}),
        ("X-Request-Timeout-Seconds", "0.051", {(504, "deadline_exceeded"), (408, "slow_body")}),
        ("X-Request-Timeout-Ms", "soon", {(422, "invalid_parameter")}),
    ],
)
def test_deadlines_are_problems(running: Running, header: str, text: str, expected: set[tuple[int, str]]) -> None:
    """Also for the header that Ray Serve would answer in plain text."""
    answer = httpx2.post(f"{running.api}/v1/classify", content=make_photo(), headers={header: text})
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["code"]) in expected


def test_what_a_client_left_behind_is_let_go_of(running: Running) -> None:
    """Thirty clients hang up at once, some with half of their image sent: nothing is under way a moment later."""
    done_before = sum(status(running)["images"][kind] for kind in ("ok", "failed"))
    url = urlsplit(running.api)
    photo = make_photo(width=2000, height=1500)
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(photo)}\r\n\r\n"
    sockets = []
    for number in range(30):
        connection = socket.create_connection((url.hostname, url.port))
        connection.sendall(head.encode() + photo[: len(photo) if number % 2 else len(photo) // 2])
        sockets.append(connection)
    for connection in sockets:
        connection.close()
    wait_for(lambda: status(running)["admission"]["images"] == status(running)["admission"]["buffered_bytes"] == 0, 5)
    done = sum(status(running)["images"][kind] for kind in ("ok", "failed")) - done_before
    assert done < 30
