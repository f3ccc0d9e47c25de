"""The benchmark around the load: photos, systems, the report."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from benchmarks import images, report
from benchmarks.serving import earlier, our_systems, rotated, selected
from benchmarks.systems import best_class
from tests.support.processes import CpuWatch, started


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


def runs(process: psutil.Process, program: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # ended since it was found
        return program in process.cmdline()
    return False


def test_nothing_is_left_of_a_system(tmp_path: Path) -> None:
    """Grandchildren in sessions of their own are found, counted and ended, even without their parents."""
    grandchild = "import time; sum(range(10**6)); time.sleep(60)"
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True)"
    parent = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with started([sys.executable, "-c", parent], tmp_path, {}, tmp_path / "log") as (tree, _):
        with CpuWatch(tree) as watch:
            deadline = time.monotonic() + 30
            while not (
                len(processes := tree.processes()) == 2 and any(runs(process, grandchild) for process in processes)
            ):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert watch.by_name["main"] >= 0
        assert tree.memory_mb()["main"] > 0
    assert len(processes) == 2
    assert not any(psutil.pid_exists(process.pid) and process.is_running() for process in processes)
    assert len(tree.left_behind) == 1


def test_rounds_are_added_only_to_their_like(tmp_path: Path) -> None:
    """A run goes on where it stopped, but not with other code."""
    was = {"machine": {"commit": "a", "cpu": {}, "versions": {}}, "rounds": [{"ours": {}}]}
    now = {"machine": {"commit": "b", "cpu": {}, "versions": {}}, "rounds": []}
    assert earlier(tmp_path, now) == now
    (tmp_path / "serving.json").write_text(json.dumps(was))
    assert earlier(tmp_path, {**now, "machine": was["machine"]}) == was
    with pytest.raises(SystemExit, match="another commit: a, now b"):
        earlier(tmp_path, now)
