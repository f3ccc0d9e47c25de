"""The benchmark measures what it says: load client, pictures, ratios. Nothing here depends on speed."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from PIL import Image

from benchmarks import images, load, report
from benchmarks.http_client import Sample, format_requests, image_files, parse
from benchmarks.processes import CpuWatch, started
from benchmarks.serving import our_systems, rotated, selected
from benchmarks.systems import ask, best_class

Handler = Callable[[bytes], Awaitable[bytes]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[str]:
    """A tiny HTTP server: each request's bytes go to the handler, which gives the bytes of the answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                answer = await handler(head + await reader.readexactly(length))
                if not answer:
                    break
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/classify"
    finally:
        listening.close()


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
    return await load.run(Namespace(url=url, images=folder, **{**defaults, "timeout": 5.0, "seed": 0, **options}))


async def test_closed_loop_counts_answers(folder: Path) -> None:
    """Every request is counted, and as many are under way as there are clients."""
    seen, under_way, most = 0, 0, 0

    async def handler(request: bytes) -> bytes:
        nonlocal seen, under_way, most
        seen, under_way = seen + 1, under_way + 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return OK

    async with server(handler) as url:
        result = await apply(url, folder)
    assert result["requests"] == result["images_in_all"] == seen > 3
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

    async with server(handler) as url:
        result = await apply(url, folder, clients=1)
    outcomes = result["outcomes"]
    assert set(outcomes) == {"200", "503", "200 with failed images", "ConnectionError"}
    assert result["failures"] == result["requests"] - outcomes["200"] > 0
    assert result["images_in_all"] == outcomes["200"]


async def test_no_server_is_a_failure(folder: Path) -> None:
    async with server(lambda request: asyncio.sleep(0, OK)) as url:
        pass
    result = await apply(url, folder, clients=1, seconds=0.1)
    assert result["failures"] == result["requests"] > 0
    assert result["latency_ms"]["p50"] is None


async def test_slow_answers_time_out(folder: Path) -> None:
    async def handler(request: bytes) -> bytes:
        await asyncio.sleep(1)
        return OK

    async with server(handler) as url:
        result = await apply(url, folder, clients=1, seconds=0.05, timeout=0.1)
    assert result["outcomes"] == {"TimeoutError": 1}


async def test_open_loop_does_not_wait_for_answers(folder: Path) -> None:
    """Arrivals go on while nothing is answered, over as many connections as that takes."""
    under_way, most = 0, 0

    async def handler(request: bytes) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.3)
        return OK

    async with server(handler) as url:
        result = await apply(url, folder, rate=100.0, seconds=0.2)
    assert most > 3
    assert result["requests"] == result["outcomes"]["200"] == under_way
    assert result["latency_ms"]["p50"] >= 300


def test_latency_counts_from_when_a_request_was_due() -> None:
    late = Sample(due=1.0, sent=1.5, end=1.6, outcome="200", batch_sizes=())
    result = load.summarise([late], start=0.0, end=2.0, images=1)
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
    result = load.summarise(samples, start=1.0, end=3.0, images=4)
    assert result["images_per_s"] == pytest.approx(4 * 2 / 2)
    assert (result["requests"], result["failures"]) == (4, 1)


def test_batch_size_is_the_mean_over_batches() -> None:
    """One batch of three and one of one make two on average."""
    samples = [Sample(0, 0, 1, "200", (3, 3)), Sample(0, 0, 1, "200", (3,)), Sample(0, 0, 1, "200", (1,))]
    assert load.summarise(samples, 0.0, 2.0, 1)["mean_batch_size"] == 2


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

    async with server(handler) as url:
        result = await apply(url, folder, clients=1, seconds=0.1)
        answer = await asyncio.to_thread(ask, url, folder / "a.jpg", None)
    assert result["failures"] == 0
    assert result["mean_batch_size"] == 4
    assert json.loads(answer.body) == {"batch_size": 4}


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
    assert load.summarise(samples, 0.0, 1.0, 64)["images_per_s"] == 128


def test_photos_have_the_sizes_of_photos(tmp_path: Path) -> None:
    paths = images.write_photos(tmp_path, 6)
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "JPEG"
            assert picture.size in images.SIZES
        assert images.SMALLEST * 0.7 < path.stat().st_size < images.LARGEST * 1.2
    contents = {path.read_bytes() for path in paths}
    assert len(contents) == 6
    again = images.write_photos(tmp_path / "again", 1)[0]
    assert again.read_bytes() == paths[0].read_bytes()


def test_a_photo_has_the_size_asked_for() -> None:
    encoded = images.photo(3, 500, 375, 107_000)
    assert len(encoded) == pytest.approx(107_000, rel=0.1)
    assert Image.open(io.BytesIO(encoded)).size == (500, 375)


def rounds() -> list[dict[str, Any]]:
    def result(speed: float) -> dict[str, Any]:
        return {"closed": {"images_per_s": speed}, "cpu_ms_per_image": {"a": 1.0, "b": 2.0}}

    return [
        {"ours": result(20), "peer": result(10), "broken": {"failed": "no\nanswer"}},
        {"peer": result(30), "ours": result(90)},
        {"ours": result(5), "peer": result(5), "broken": {"failed": "no answer"}},
    ]


def test_ratios_are_taken_within_each_round() -> None:
    found = report.ratios(rounds(), "ours", "peer", report.THROUGHPUT)
    assert found == report.Spread(2.0, 1.0, 3.0)
    assert report.ratios(rounds(), "ours", "broken", report.THROUGHPUT) is None


def test_report_shows_what_there_is() -> None:
    run = {
        "machine": {
            "date": "2000-01-01",
            "commit": "abc",
            "arguments": [],
            "cpu": {"model": "CPU", "cores": 2, "flags": ["avx2"]},
            "memory_gb": 1,
            "kernel": "6",
            "python": "3",
            "versions": {"ray": "2"},
        },
        "ours": ["ours"],
        "rounds": rounds(),
    }
    text = report.markdown(run)
    assert "| ours ÷ peer " in text
    assert "2.00 (1.00–3.00)" in text
    assert "round 1, broken: not measured: no answer" in text
    assert report.names(rounds()) == ["ours", "peer", "broken"]
    assert report.cpu_parts(rounds(), "ours") == {"b": 2.0, "a": 1.0}


def test_best_class_of_each_kind_of_answer() -> None:
    predictions = [{"class_id": 7, "score": 0.9}, {"class_id": 1, "score": 0.1}]
    assert best_class({"results": [{"predictions": predictions}]}) == 7
    assert best_class([{"predictions": predictions}]) == 7
    assert best_class({"predictions": predictions}) == 7


def test_systems_are_chosen_by_name(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("applications: []")
    mine = our_systems([str(config), f"other={config}"], {"RAY_X": "1"})
    assert set(mine) == {"ours", "ours-other"}
    assert mine["ours-other"].environment == {"RAY_X": "1"}
    chosen = [name for name in ("ceiling", "ours", "ours-other", "mosec") if selected(name, mine, "ours,mosec")]
    assert chosen == ["ours", "ours-other", "mosec"]
    with pytest.raises(SystemExit, match="unknown"):
        selected("ours", mine, "nonsense")
    assert rotated(["a", "b", "c"], 4) == ["b", "c", "a"]


def test_nothing_is_left_of_a_system(tmp_path: Path) -> None:
    """Grandchildren in sessions of their own are found, counted and ended, even without their parents."""
    grandchild = "import time; sum(range(10**6)); time.sleep(60)"
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True)"
    parent = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with started([sys.executable, "-c", parent], tmp_path, {}, tmp_path / "log") as (tree, _):
        with CpuWatch(tree) as watch:
            deadline = time.monotonic() + 30
            while not any(grandchild in process.cmdline() for process in tree.processes()):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        processes = tree.processes()
        assert watch.by_name["main"] >= 0
        assert tree.memory_mb()["main"] > 0
    assert len(processes) == 2
    assert not any(psutil.pid_exists(process.pid) and process.is_running() for process in processes)
    assert len(tree.left_behind) == 1
