"""ETL on real Parquet files: each row once, nothing lost, the same after a second run or a crash."""

from __future__ import annotations

import datetime
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from serve_app.analytics import etl
from serve_app.observability.prediction_log import RAW, SCHEMA, write_rows

NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
Row = dict[str, Any]


def row(number: int, hours: float = 0, **changes: Any) -> Row:
    chance = random.Random(number)
    good: Row = {
        **{"time": NOON + datetime.timedelta(hours=hours, seconds=number), "request_id": f"req_{number}", "image": 0},
        **{"status": "ok", "variant": "main", "version": "v1", "class_id": 1, "label": chance.choice(["cat", "dog"])},
        **{"score": chance.random(), "margin": 0.1, "entropy": 1.0, "format": "jpeg", "width": 640, "height": 480},
        **{"bytes": 1000, "brightness": 100.0, "contrast": 40.0, "sharpness": 5.0, "decode_ms": 4.0, "queue_ms": 0.0},
        **{"model_ms": 20.0, "total_ms": 30 + chance.random() * 100, "batch_size": 2},
    }
    return good | changes


def put(folder: Path, name: str, rows: list[Row]) -> None:
    (folder / RAW).mkdir(exist_ok=True)
    values = [tuple(each[column] for column in SCHEMA.names) for each in rows]
    write_rows(fs.LocalFileSystem(), str(folder / RAW / f"{name}.parquet"), values)


def days(folder: Path) -> dict[str, list[Row]]:
    return {path.stem: pq.read_table(path).to_pylist() for path in sorted((folder / etl.DAYS).glob("*.parquet"))}


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def test_rows_go_to_their_days_once_and_in_order(tmp_path: Path) -> None:
    put(tmp_path, "b", [row(n) for n in (3, 1, 2)])
    put(tmp_path, "a", [row(2), row(4, hours=24)])
    report = etl.run(tmp_path)
    assert (report.raw_files, report.raw_rows, report.duplicates) == (2, 5, 1)
    found = days(tmp_path)
    assert {day: [each["request_id"] for each in rows] for day, rows in found.items()} == {
        "2026-03-01": ["req_1", "req_2", "req_3"],
        "2026-03-02": ["req_4"],
    }
    assert found["2026-03-01"][0] == pa.Table.from_pylist([row(1)], SCHEMA).to_pylist()[0]
    assert not list((tmp_path / RAW).iterdir())


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a", [row(n) for n in range(100)])
    etl.run(tmp_path)
    before = state(tmp_path)
    assert etl.run(tmp_path) == etl.Report()
    assert state(tmp_path) == before


def test_the_same_files_again_change_nothing(tmp_path: Path) -> None:
    """As after a crash between the last file written and the first one taken away."""
    put(tmp_path, "a", [row(n) for n in range(100)])
    etl.run(tmp_path)
    before = state(tmp_path)
    put(tmp_path, "a", [row(n) for n in range(100)])
    assert etl.run(tmp_path).duplicates == 100
    assert state(tmp_path) == before


def test_late_rows_join_their_day(tmp_path: Path) -> None:
    put(tmp_path, "a", [row(1), row(3)])
    etl.run(tmp_path)
    put(tmp_path, "b", [row(2)])
    etl.run(tmp_path)
    assert [each["request_id"] for each in days(tmp_path)["2026-03-01"]] == ["req_1", "req_2", "req_3"]
    assert len(list((tmp_path / etl.DAYS).glob("*"))) == 1


def test_what_is_no_log_is_set_aside(tmp_path: Path) -> None:
    """And the rest goes on; nothing is deleted."""
    put(tmp_path, "a", [row(1), row(2, request_id=None), row(3)])
    (tmp_path / RAW / "torn.parquet").write_bytes(b"PAR1 half of a file")
    pq.write_table(pa.table({"other": [1]}), tmp_path / RAW / "other.parquet")
    report = etl.run(tmp_path)
    assert [each["request_id"] for each in days(tmp_path)["2026-03-01"]] == ["req_1", "req_3"]
    assert (report.rejected_rows, len(report.rejected_files)) == (1, 2)
    assert {path.name for path in (tmp_path / etl.REJECTED).iterdir()} == {
        *("rows-a.parquet", "torn.parquet", "other.parquet", "reasons.jsonl")
    }


def test_summaries_add_up(tmp_path: Path) -> None:
    rows = [row(n, hours=n % 3, version=f"v{n % 2}") for n in range(300)]
    rows += [row(n, status="invalid_image", version=None, label=None, score=None) for n in range(300, 310)]
    put(tmp_path, "a", rows)
    etl.run(tmp_path)

    def ask(query: str, table: str) -> list[Any]:
        path = tmp_path / etl.SUMMARY / table / "2026-03-01.parquet"
        return duckdb.sql(f"SELECT {query} FROM '{path}'").fetchall()

    assert ask("sum(images) FILTER (status = 'ok'), sum(images), count(DISTINCT hour)", "hours") == [(300, 310, 3)]
    cats = sum(each["label"] == "cat" for each in rows)
    assert ask("sum(images) FILTER (label = 'cat'), sum(images)", "classes") == [(cats, 300)]
    assert ask("sum(images) FILTER (metric = 'score')", "histograms") == [(300,)]
    within = "sum(images) FILTER (metric = 'total_ms' AND low <= 80)"
    exact = sum(each["total_ms"] <= 80 for each in rows)
    assert abs(ask(within, "histograms")[0][0] - exact) <= 0.1 * 310


def test_old_days_go_and_their_summaries_stay(tmp_path: Path) -> None:
    put(tmp_path, "a", [row(1), row(2, hours=24), row(3, hours=48)])
    report = etl.run(tmp_path, keep_days=1, today=datetime.date(2026, 3, 3))
    assert report.expired == ["2026-03-01"]
    assert list(days(tmp_path)) == ["2026-03-02", "2026-03-03"]
    assert len(list((tmp_path / etl.SUMMARY / "hours").glob("*"))) == 3


def test_only_one_at_a_time(tmp_path: Path) -> None:
    put(tmp_path, "a", [row(1)])
    with etl._alone(tmp_path), pytest.raises(etl.EtlError, match="another run is at work"):
        etl.run(tmp_path)


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve_app.analytics.etl"]
    none = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert (none.returncode, none.stderr) == (
        2,
        f"error: {tmp_path} holds no prediction log: there is no folder raw in it\n",
    )
    put(tmp_path, "a", [row(1)])
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"raw_rows": 1' in done.stdout
