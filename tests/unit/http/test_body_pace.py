"""How slowly a body may arrive: a rate with a grace period, and a deadline. Time is virtual."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from serve_app.config import JobsConfig, LimitsConfig, WeightsConfig
from serve_app.errors import SlowBodyError
from serve_app.http.app import create_app
from serve_app.http.body_pace import PacedBody
from tests.support.clock import in_virtual_time
from tests.support.local_service import LocalService

RATE, GRACE_S = 1000, 10
Pieces = Iterable[tuple[float, int]]  # pause in seconds, then bytes


def client(pieces: Pieces) -> Callable[[], Any]:
    """A client that sends pieces of a body after pauses, then nothing."""
    remaining = iter(pieces)

    async def receive() -> Message:
        pause_s, size = next(remaining, (math.inf, 0))
        await asyncio.sleep(min(pause_s, 1e6))
        return {"type": "http.request", "body": bytes(size), "more_body": size > 0}

    return receive


async def read(pieces: Pieces, timeout_s: float = 1e5, work_s: float = 0) -> tuple[int, float]:
    """Read a body; return its bytes and the seconds that this took. ``work_s`` is the server's own time per piece."""
    loop, sizes = asyncio.get_running_loop(), []
    start = loop.time()
    body = PacedBody(client(pieces), RATE, GRACE_S, timeout_s, sizes.append)
    while (await body()).get("more_body"):
        await asyncio.sleep(work_s)
    return sum(sizes), loop.time() - start


END = (0.0, 0)


@in_virtual_time
async def test_a_slow_but_steady_body_arrives() -> None:
    """At the rate, with pauses up to the grace period that it makes up for, and while the server is slow."""
    assert await read([(1, 1000)] * 100 + [END]) == (100_000, 100)
    assert (await read([(9, 9000)] * 50 + [END]))[0] == 450_000
    assert (await read([(0, 50_000), (9, 10), END]))[0] == 50_010
    assert (await read([(0.1, 100)] * 20 + [END], work_s=60))[0] == 2000


@pytest.mark.parametrize(
    ("pieces", "ends_after_s"),
    [
        ([], 10),  # nothing at all
        ([(1, 100)] * 1000, 11),  # a tenth of the rate
        ([(0, 2**21), *[(20, 1)] * 1000], 10),  # most of it fast, then a byte every 20 s
        ([(0, 2**21), *[(2, 1)] * 1000], 10),
        ([(1, 2000)] * 1000 + [(9, 1), (9, 1)], 1010),
    ],
)
def test_a_body_that_falls_behind_is_refused(pieces: Pieces, ends_after_s: float) -> None:
    """What came fast before earns no more than the grace period."""

    @in_virtual_time
    async def run() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(SlowBodyError, match="too slowly"):
            await read(pieces)
        assert loop.time() == pytest.approx(ends_after_s, abs=1.5)

    run()


@in_virtual_time
async def test_a_body_ends_at_the_deadline() -> None:
    """However steady it is."""
    with pytest.raises(SlowBodyError, match="deadline passed after 29000 bytes"):
        await read([(1, 1000)] * 100, timeout_s=29.5)
    assert asyncio.get_running_loop().time() == pytest.approx(29.5)


def post(
    service: LocalService, path: str, pieces: Pieces, *headers: tuple[bytes, bytes]
) -> tuple[int, dict[bytes, bytes], float]:
    """Send a body to the app; return status, headers and seconds until the response."""
    sent: list[Message] = []
    times: list[float] = []

    @in_virtual_time
    async def run() -> None:
        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": list(headers)}
        start = asyncio.get_running_loop().time()
        await create_app(service)(scope, client(pieces), send)
        times.append(asyncio.get_running_loop().time() - start)

    run()
    return sent[0]["status"], dict(sent[0]["headers"]), times[0]


SLOW = [(0.0, 2**20), *[(20.0, 1)] * 10_000]


@pytest.mark.parametrize("path", ["/v1/classify", "/predict", "/v2/models/resnet18/infer", "/v1/classify/"])
def test_a_slow_image_is_a_408_that_closes(weights: WeightsConfig, path: str) -> None:
    """2 MiB at once and then a byte every 20 s: the request ends long before its deadline."""
    status, headers, seconds = post(LocalService(weights, LimitsConfig(deadline_s=600)), path, SLOW)
    assert (status, headers[b"connection"]) == (408, b"close")
    assert seconds == pytest.approx(10)


def test_a_slow_upload_of_a_job_is_a_408(weights: WeightsConfig, tmp_path: Path) -> None:
    """A job upload has no short deadline, but the same rate, and a total time."""
    service = LocalService(weights)
    service.router._variant("main").refresh = lambda: asyncio.get_running_loop().create_task(state())  # type: ignore[assignment,method-assign]

    async def state() -> Any:
        return service.router._variant("main").state

    zip_header = (b"content-type", b"application/zip")
    service.configure(jobs=JobsConfig(folder=str(tmp_path), max_upload_s=100))
    status, headers, seconds = post(service, "/v1/jobs", SLOW, zip_header)
    assert (status, headers[b"connection"]) == (408, b"close")
    assert 30 <= seconds <= 31
    status, _, seconds = post(service, "/v1/jobs", [(1.0, 10_000)] * 200, zip_header)
    assert (status, round(seconds)) == (408, 100)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
