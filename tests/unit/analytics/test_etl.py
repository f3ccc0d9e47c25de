"""The ETL on real Parquet files: each row once, no row lost, the same result after a second run or a crash."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from serve_app.analytics import etl
from serve_app.cli.main import app
from serve_app.files import exclusive_lock
from serve_app.prediction_log_format import DAYS, RAW, REJECTED, SCHEMA, SUMMARY
from tests.support.prediction_rows import days, row, write_raw


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def test_rows_go_to_their_days_once_and_in_order(tmp_path: Path) -> None:
    """Rows of two files become one file per day, sorted by time, without duplicates; raw files are deleted."""
    write_raw(tmp_path, "b", [row(n) for n in (3, 1, 2)])
    write_raw(tmp_path, "a", [row(2), row(4, hours=24)])
    report = etl.run(tmp_path)
    assert (report.raw_files, report.raw_rows, report.duplicates) == (2, 5, 1)
    rows_by_day = days(tmp_path)
    assert {day: [row["request_id"] for row in rows] for day, rows in rows_by_day.items()} == {
        "2026-03-01": ["req_1", "req_2", "req_3"],
        "2026-03-02": ["req_4"],
    }
    assert rows_by_day["2026-03-01"][0] == pa.Table.from_pylist([row(1)], SCHEMA).to_pylist()[0]
    assert not list((tmp_path / RAW).iterdir())


def test_second_run_changes_nothing(tmp_path: Path) -> None:
    """Without new raw files a run reports nothing and leaves every byte as it was."""
    write_raw(tmp_path, "a", [row(n) for n in range(100)])
    etl.run(tmp_path)
    before = contents(tmp_path)
    assert etl.run(tmp_path) == etl.Report()
    assert contents(tmp_path) == before


def test_same_raw_files_again_change_nothing(tmp_path: Path) -> None:
    """After a crash between writing days and deleting raw files, the next run gives the same bytes."""
    write_raw(tmp_path, "a", [row(n) for n in range(100)])
    etl.run(tmp_path)
    before = contents(tmp_path)
    write_raw(tmp_path, "a", [row(n) for n in range(100)])
    assert etl.run(tmp_path).duplicates == 100
    assert contents(tmp_path) == before


def test_late_rows_join_their_day(tmp_path: Path) -> None:
    """Rows that arrive after their day was written are sorted into it."""
    write_raw(tmp_path, "a", [row(1), row(3)])
    etl.run(tmp_path)
    write_raw(tmp_path, "b", [row(2)])
    etl.run(tmp_path)
    assert [row["request_id"] for row in days(tmp_path)["2026-03-01"]] == ["req_1", "req_2", "req_3"]
    assert len(list((tmp_path / DAYS).glob("*"))) == 1


def test_rejected_files_and_rows_are_kept_apart(tmp_path: Path) -> None:
    """Files that are no prediction log and incomplete rows go to rejected/; the other rows reach their days."""
    write_raw(tmp_path, "a", [row(1), row(2, request_id=None), row(3)])
    (tmp_path / RAW / "torn.parquet").write_bytes(b"PAR1 half of a file")
    pq.write_table(pa.table({"other": [1]}), tmp_path / RAW / "other.parquet")
    report = etl.run(tmp_path)
    assert [row["request_id"] for row in days(tmp_path)["2026-03-01"]] == ["req_1", "req_3"]
    assert (report.rejected_rows, len(report.rejected_files)) == (1, 2)
    assert {path.name for path in (tmp_path / REJECTED).iterdir()} == {
        *("rows-a.parquet", "torn.parquet", "other.parquet", "reasons.jsonl")
    }


def test_summaries_add_up(tmp_path: Path) -> None:
    """Counts per hour, class and histogram bin add up to the rows they summarize."""
    rows = [row(n, hours=n % 3, version=f"v{n % 2}") for n in range(300)]
    rows += [row(n, status="invalid_image", version=None, label=None, score=None) for n in range(300, 310)]
    write_raw(tmp_path, "a", rows)
    etl.run(tmp_path)

    def select(query: str, table: str) -> list[Any]:
        path = tmp_path / SUMMARY / table / "2026-03-01.parquet"
        return duckdb.sql(f"SELECT {query} FROM '{path}'").fetchall()

    assert select("sum(images) FILTER (status = 'ok'), sum(images), count(DISTINCT hour)", "hours") == [(300, 310, 3)]
    cats = sum(row["label"] == "cat" for row in rows)
    assert select("sum(images) FILTER (label = 'cat'), sum(images)", "classes") == [(cats, 300)]
    assert select("sum(images) FILTER (metric = 'score')", "histograms") == [(300,)]
    within = "sum(images) FILTER (metric = 'total_ms' AND low <= 80)"
    exact = sum(row["total_ms"] <= 80 for row in rows)
    assert abs(select(within, "histograms")[0][0] - exact) <= 0.1 * 310


def test_old_days_are_deleted_and_their_summaries_stay(tmp_path: Path) -> None:
    """`keep_days` deletes rows of older days and keeps their counts."""
    write_raw(tmp_path, "a", [row(1), row(2, hours=24), row(3, hours=48)])
    report = etl.run(tmp_path, keep_days=1, today=datetime.date(2026, 3, 3))
    assert report.expired == ["2026-03-01"]
    assert list(days(tmp_path)) == ["2026-03-02", "2026-03-03"]
    assert len(list((tmp_path / SUMMARY / "hours").glob("*"))) == 3


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """A second run is refused while another one holds the lock."""
    write_raw(tmp_path, "a", [row(1)])
    with exclusive_lock(tmp_path / ".etl.lock"), pytest.raises(etl.EtlError, match="another run is in progress"):
        etl.run(tmp_path)
    assert etl.run(tmp_path).raw_rows == 1


def test_command_line(tmp_path: Path) -> None:
    """`serve-app etl` prints counts and exits with 0; with 2 for a wrong folder, with 1 after a rejection."""
    refused = CliRunner().invoke(app, ["etl", str(tmp_path)])
    assert (refused.exit_code, refused.stdout, refused.stderr) == (
        *(2, "", f"error: {tmp_path} holds no prediction log: there is no folder raw in it\n"),
    )
    write_raw(tmp_path, "a", [row(1)])
    done = CliRunner().invoke(app, ["etl", str(tmp_path)])
    assert (done.exit_code, done.stderr, json.loads(done.stdout)["raw_rows"]) == (0, "", 1)
    write_raw(tmp_path, "b", [row(2, status=None)])
    rejected = CliRunner().invoke(app, ["etl", str(tmp_path)])
    assert (rejected.exit_code, json.loads(rejected.stdout)["rejected_rows"]) == (1, 1)
    assert "rejected" in rejected.stderr
