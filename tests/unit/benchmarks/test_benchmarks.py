"""The benchmark around the load: photos, systems, the report."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import images, report
from benchmarks.budget import NATIVE, split, step_of
from benchmarks.goals import goals_table
from benchmarks.serving import earlier, our_systems, rotated, selected
from benchmarks.systems import ask, best_class
from tests.support.tiny_server import serving


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


def test_each_goal_that_was_measured_has_a_line() -> None:
    """Bound, median, ratio to the bound, spread over the rounds, and whether the goal is reached."""

    def measured(images_per_s: float, lone_ms: float, **more: object) -> dict[str, Any]:
        return {"closed": {"images_per_s": images_per_s}, "lone": {"latency_ms": {"p50": lone_ms}}} | more

    found = goals_table(
        [
            {
                "ours": measured(rate, 24.0, cpu_ms_per_image_total=25.0),
                "ceiling": measured(100.0, 20.0, ceiling={"processes": 2}),
                "fastapi": measured(25.0, 60.0),
            }
            for rate in (80.0, 90.0, 85.0)
        ]
    )
    cells = {
        row[0]: row[1:] for line in found.splitlines()[4:] if (row := [cell.strip() for cell in line.split("|")[1:-1]])
    }
    assert cells == {
        "images/s, ours ÷ ceiling": ["≥ 0.85", "0.85 (0.80–0.90)", "1.00", "12%", "yes"],
        "CPU ms/image beside decoding and model": ["≤ 4", "5.00", "0.80", "0%", "no"],
        "lone request p50, ours ÷ ceiling": ["≤ 1.1", "1.20", "0.92", "0%", "no"],
        "images/s, ours ÷ fastapi": ["≥ 3", "3.40 (3.20–3.60)", "1.13", "12%", "yes"],
    }
    assert goals_table([{"fastapi": measured(25.0, 60.0)}]) == ""


def test_best_class_of_each_response_format() -> None:
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


async def test_a_chunked_response_is_read_to_its_end(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")

    async def handler(request: bytes) -> bytes:
        return b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{"batch_size": 4\r\n1\r\n}\r\n0\r\n\r\n'

    async with serving(handler) as url:
        answer = await asyncio.to_thread(ask, url, tmp_path / "a.jpg", None)
    assert json.loads(answer.body) == {"batch_size": 4}


def test_rounds_of_another_commit_are_not_mixed_in(tmp_path: Path) -> None:
    """A repeated run adds rounds to its own results, and refuses to add to those of another commit."""
    was = {"machine": {"commit": "a", "cpu": {}, "versions": {}}, "rounds": [{"ours": {}}]}
    now = {"machine": {"commit": "b", "cpu": {}, "versions": {}}, "rounds": []}
    assert earlier(tmp_path, now) == now
    (tmp_path / "serving.json").write_text(json.dumps(was))
    assert earlier(tmp_path, {**now, "machine": was["machine"]}) == was
    with pytest.raises(SystemExit, match="another commit: a, now b"):
        earlier(tmp_path, now)


def test_a_stack_belongs_to_the_step_of_its_innermost_known_frame() -> None:
    """Library code that a step calls counts for it; a stack that no step knows is `other`."""
    parse = ["run (/x/uvicorn/server.py:1)", "form (/x/serve_app/http/form_body.py:9)", "copy (/lib/copy.py:3)"]
    assert step_of(parse) == "parse"
    assert step_of([*parse, "dumps (/x/ray/cloudpickle/fast.py:2)"]) == "serialise"
    assert step_of(["f (/x/elsewhere.py:1)"]) == "other"
    found = split(10.0, Counter({"engine": 1000, "HTTP": 200}), images_per_s=50.0, seconds=10)  # 10 and 2 ms sampled
    assert found == pytest.approx({"engine": 10 / 1.2, "HTTP": 2 / 1.2, NATIVE: 0.0})
    assert split(15.0, Counter({"engine": 1000}), 50.0, 10)[NATIVE] == pytest.approx(5.0)
