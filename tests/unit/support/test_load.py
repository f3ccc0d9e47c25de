"""The load client: counts, failures, latencies, parsing. No test here depends on speed."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.support import load
from tests.support.http_client import Sample, format_requests, image_files, parse
from tests.support.tiny_server import serving

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four small pictures of two kinds, one in a folder below."""
    (tmp_path / "below").mkdir()
    for i, name in enumerate(("a.jpg", "b.JPEG", "below/c.png", "d.jpg")):
        Image.new("RGB", (8 + i, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


async def apply(url: str, folder: Path, **options: Any) -> dict[str, Any]:
    defaults = {"clients": 3, "rate": None, "seconds": 0.3, "ramp": 0.0, "per_request": 1, "field": None}
    return await load.run(
        Namespace(url=url, images=folder, **{**defaults, "timeout": 5.0, "seed": 0, "source": None, **options})
    )


async def test_closed_loop_counts_answers(folder: Path) -> None:
    """Each request is counted, and as many are in flight as there are clients."""
    seen, in_flight, most = 0, 0, 0

    async def handler(request: bytes) -> bytes:
        nonlocal seen, in_flight, most
        seen, in_flight = seen + 1, in_flight + 1
        most = max(most, in_flight)
        await asyncio.sleep(0.01)
        in_flight -= 1
        return OK

    async with serving(handler) as url:
        result = await apply(url, folder)
    assert result["requests"] == result["images_in_all"] == seen >= 3
    assert most == 3
    assert result["failures"] == 0
    assert result["outcomes"] == {"200": seen}


async def test_anything_but_a_flawless_200_is_a_failure(folder: Path) -> None:
    answers = [
        OK,
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"status":"error"}',
        b"",  # hangs up
    ]
    count = 0

    async def handler(request: bytes) -> bytes:
        nonlocal count
        count += 1
        await asyncio.sleep(0.005)
        return answers[count % len(answers)]

    async with serving(handler) as url:
        result = await apply(url, folder, clients=1)
    outcomes = result["outcomes"]
    assert set(outcomes) == {"200", "503", "200 with failed images", "ConnectionError"}
    assert result["failures"] == result["requests"] - outcomes["200"] > 0
    assert result["images_in_all"] == outcomes["200"]


async def test_no_server_is_a_failure(folder: Path) -> None:
    async with serving(lambda request: asyncio.sleep(0, OK)) as url:
        pass
    result = await apply(url, folder, clients=1, seconds=0.1)
    assert result["failures"] == result["requests"] > 0
    assert result["latency_ms"]["p50"] is None


async def test_slow_answers_time_out(folder: Path) -> None:
    async def handler(request: bytes) -> bytes:
        await asyncio.sleep(1)
        return OK

    async with serving(handler) as url:
        result = await apply(url, folder, clients=1, seconds=0.05, timeout=0.1)
    assert result["outcomes"] == {"TimeoutError": 1}


async def test_open_loop_does_not_wait_for_answers(folder: Path) -> None:
    """Requests are sent at their rate while earlier ones wait, over as many connections as that takes."""
    sent = 0

    async def handler(request: bytes) -> bytes:
        nonlocal sent
        sent += 1
        await asyncio.sleep(0.3)
        return OK

    async with serving(handler) as url:
        result = await apply(url, folder, rate=100.0, seconds=0.2)
    assert result["requests"] == result["outcomes"]["200"] == sent > 3
    assert result["latency_ms"]["p50"] >= 300


def test_latency_counts_from_when_a_request_was_due() -> None:
    late = Sample(due=1.0, sent=1.5, end=1.6, outcome="200", batch_sizes=())
    result = load.summarize([late], start=0.0, end=2.0, images=1)
    assert result["latency_ms"]["p99"] == pytest.approx(600)
    assert result["late_p99_ms"] == pytest.approx(500)


def test_requests_on_the_edge_of_the_window_count_in_part() -> None:
    samples = [
        Sample(0.0, 0.0, 0.9, "200", ()),  # before: warm-up
        Sample(0.5, 0.5, 1.5, "200", ()),  # half of it within
        Sample(1.5, 1.5, 2.5, "200", ()),
        Sample(2.5, 2.5, 3.5, "200", ()),  # half of it within
        Sample(1.0, 1.0, 2.0, "500", ()),
    ]
    result = load.summarize(samples, start=1.0, end=3.0, images=4)
    assert result["images_per_s"] == pytest.approx(4 * 2 / 2)
    assert (result["requests"], result["failures"]) == (4, 1)


def test_batch_size_is_the_mean_over_batches() -> None:
    """One batch of three and one of one make two on average."""
    samples = [Sample(0, 0, 1, "200", (3, 3)), Sample(0, 0, 1, "200", (3,)), Sample(0, 0, 1, "200", (1,))]
    assert load.summarize(samples, 0.0, 2.0, 1)["mean_batch_size"] == 2


def test_percentiles_are_values_that_occurred() -> None:
    found = load.percentiles([float(value) for value in range(1, 101)])
    assert (found["p50"], found["p90"], found["p99"], found["mean"]) == (50, 90, 99, 50.5)
    assert load.percentiles([7.0])["p99"] == 7


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n", b"hello"),
        (b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n", b""),
    ],
)
def test_answers_come_in_pieces(answer: bytes, body: bytes, step: int) -> None:
    received = bytearray()
    for at in range(0, len(answer), step):
        assert parse(received) is None
        received += answer[at : at + step]
    found = parse(received)
    assert found
    assert (found.status, found.body, found.keep_alive) == (int(answer[9:12]), body, True)


def test_connection_close_is_seen() -> None:
    found = parse(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    assert found
    assert not found.keep_alive


async def test_chunked_answers_over_the_wire(folder: Path) -> None:
    async def handler(request: bytes) -> bytes:
        return b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{"batch_size": 4\r\n1\r\n}\r\n0\r\n\r\n'

    async with serving(handler) as url:
        result = await apply(url, folder, clients=1, seconds=0.1)
    assert result["failures"] == 0
    assert result["mean_batch_size"] == 4


def test_requests_hold_the_files_as_they_are(folder: Path) -> None:
    files = image_files(folder)
    assert [path.name for path in files] == ["a.jpg", "b.JPEG", "c.png", "d.jpg"]
    url = urlsplit("http://127.0.0.1:1/classify")
    alone = format_requests(url, files, 1, None)
    assert len(alone) == 4
    assert alone[0].endswith(b"\r\n\r\n" + files[0].read_bytes())
    assert b"Content-Type: image/png\r\n" in alone[2]
    together = format_requests(url, files, 3, "images")
    assert all(request.count(b'name="images"') == 3 for request in together)
    assert files[3].read_bytes() in together[1]
    head, _, body = together[0].partition(b"\r\n\r\n")
    assert int(head.rpartition(b"Content-Length: ")[2]) == len(body)


def test_several_images_count_each(folder: Path) -> None:
    samples = [Sample(0, 0, 1, "200", ())] * 2
    assert load.summarize(samples, 0.0, 1.0, 64)["images_per_s"] == 128
