"""What must not lose rows or end the ETL: ids of clients, files of older versions, damaged files, clocks."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from serve_app.analytics import etl
from serve_app.prediction_log_format import DAYS, RAW, REJECTED, SUMMARY
from tests.support.paths import ROOT
from tests.support.prediction_rows import NOON, days, row, summarized, write_old_raw, write_raw


def flip_byte(path: Path) -> None:
    """Change one byte of a Parquet file's first page; its footer stays whole."""
    content = bytearray(path.read_bytes())
    content[100] ^= 0xFF
    path.write_bytes(content)


def erase_pages(path: Path) -> None:
    """Overwrite a Parquet file's first half with zeros; its footer stays whole."""
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:4] + bytes(half - 4) + content[half:])


def erase(path: Path) -> None:
    path.write_bytes(b"")


def test_a_constant_request_id_loses_no_row(tmp_path: Path) -> None:
    """A gateway sends the same X-Request-ID with every request: all rows stay, also when a raw file comes twice."""
    same = [row(n, request_id="gateway", image=n % 2, request_uuid=f"uuid_{n // 2}") for n in range(10)]
    for _ in range(2):
        write_raw(tmp_path, "a", same)
        etl.run(tmp_path)
    assert [each["request_uuid"] for each in days(tmp_path)["2026-03-01"]] == [f"uuid_{n // 2}" for n in range(10)]
    assert summarized(tmp_path, "2026-03-01") == 10


def test_raw_files_of_older_versions_are_processed(tmp_path: Path) -> None:
    """Rows without the server's id keep their day, once each, beside new rows; a constant request id loses none."""
    old = [row(n, request_id="gateway") for n in range(5)]
    write_old_raw(tmp_path, "old", old)
    assert etl.run(tmp_path).rejected_files == []
    write_old_raw(tmp_path, "old", old)
    write_raw(tmp_path, "new", [row(n, request_id="gateway") for n in range(5, 8)])
    report = etl.run(tmp_path)
    assert (report.rejected_files, report.duplicates) == ([], 5)
    assert [each["request_uuid"] for each in days(tmp_path)["2026-03-01"]] == [None] * 5 + [
        "uuid_5",
        "uuid_6",
        "uuid_7",
    ]


def test_embeddings_stay_as_they_are(tmp_path: Path) -> None:
    """The bytes of an embedding reach the file of its day unchanged, beside rows that have none."""
    kept = bytes(range(256)) * 4
    write_raw(tmp_path, "new", [row(1, embedding=kept), row(2)])
    write_old_raw(tmp_path, "old", [row(3)])
    assert etl.run(tmp_path).rejected_files == []
    assert [each["embedding"] for each in days(tmp_path)["2026-03-01"]] == [kept, None, None]


def test_days_of_older_versions_take_new_rows(tmp_path: Path) -> None:
    """A file of a day that lacks the column keeps its rows."""
    write_old_raw(tmp_path, "old", [row(1)])
    (tmp_path / DAYS).mkdir()
    (tmp_path / RAW / "old.parquet").rename(tmp_path / DAYS / "2026-03-01.parquet")
    write_raw(tmp_path, "new", [row(2)])
    etl.run(tmp_path)
    assert [each["request_id"] for each in days(tmp_path)["2026-03-01"]] == ["req_1", "req_2"]


@pytest.mark.parametrize("damage", [flip_byte, erase_pages, erase])
def test_a_raw_file_with_damaged_rows_stops_no_other(tmp_path: Path, damage: Any) -> None:
    """Its footer is whole, so only reading its rows shows the damage. Before, every later run failed on it."""
    write_raw(tmp_path, "a", [row(n) for n in range(1000)])
    write_raw(tmp_path, "b", [row(2000)])
    damage(tmp_path / RAW / "a.parquet")
    report = etl.run(tmp_path)
    assert [name.split(":")[0] for name in report.rejected_files] == ["a.parquet"]
    assert [each["request_id"] for each in days(tmp_path)["2026-03-01"]] == ["req_2000"]
    assert (tmp_path / REJECTED / "a.parquet").exists()


@pytest.mark.parametrize("damage", [erase, erase_pages])
def test_a_damaged_day_stops_no_run(tmp_path: Path, damage: Any) -> None:
    """The file of the day goes to rejected/, and the day begins again with the rows that come later."""
    write_raw(tmp_path, "a", [row(n) for n in range(1000)])
    etl.run(tmp_path)
    damage(tmp_path / DAYS / "2026-03-01.parquet")
    write_raw(tmp_path, "b", [row(2000), row(2001, hours=24)])
    report = etl.run(tmp_path)
    assert [name.split(":")[0] for name in report.rejected_files] == ["2026-03-01.parquet"]
    assert {day: len(rows) for day, rows in days(tmp_path).items()} == {"2026-03-01": 1, "2026-03-02": 1}
    assert summarized(tmp_path, "2026-03-01") == 1


def test_rows_of_a_deleted_day_leave_its_counts(tmp_path: Path) -> None:
    """A row that comes after its day was deleted does not replace the day's summary by one of itself."""
    write_raw(tmp_path, "a", [row(n) for n in range(10)])
    etl.run(tmp_path, keep_days=1, today=datetime.date(2026, 3, 3))
    write_raw(tmp_path, "b", [row(11), row(12, hours=48)])
    report = etl.run(tmp_path, keep_days=1, today=datetime.date(2026, 3, 3))
    assert (report.late_rows, report.rejected_rows, report.days) == (1, 0, ["2026-03-03"])
    assert summarized(tmp_path, "2026-03-01") == 10


def test_a_clock_that_jumps_over_midnight_loses_no_row(tmp_path: Path) -> None:
    """Rows go to the day of their own time, whatever the order of the files and wherever the clock went."""
    midnight = 12 * 3600
    times = [midnight - 1, midnight + 1, midnight - 1, -10 * 365 * 86400, midnight]
    write_raw(tmp_path, "a", [row(n, time=NOON + datetime.timedelta(seconds=s)) for n, s in enumerate(times)])
    etl.run(tmp_path)
    assert {day: len(rows) for day, rows in days(tmp_path).items()} == {
        "2016-03-03": 1,
        "2026-03-01": 2,
        "2026-03-02": 2,
    }


def test_scores_that_are_no_numbers_spoil_no_summary(tmp_path: Path) -> None:
    """Older versions logged NaN scores of a broken model; means and histograms leave them out."""
    write_raw(
        tmp_path, "a", [row(1, score=0.5, label="cat"), row(2, score=float("nan"), entropy=float("inf"), label="cat")]
    )
    etl.run(tmp_path)
    (counted,) = pq.read_table(tmp_path / SUMMARY / "classes").to_pylist()
    assert (counted["images"], counted["score_sum"]) == (2, 0.5)
    metrics = pq.read_table(tmp_path / SUMMARY / "histograms").to_pydict()
    assert sum(n for name, n in zip(metrics["metric"], metrics["images"], strict=True) if name == "score") == 1


def test_feedback_joins_the_row_that_it_followed(tmp_path: Path) -> None:
    """The query of docs/feedback.md joins each vote with one row, also where all requests have the same id."""
    write_raw(tmp_path, "a", [row(n, request_id="gateway", version=f"v{n // 10}") for n in (1, 10, 20)])
    etl.run(tmp_path)
    (tmp_path / "votes").mkdir()
    for n, correct in ((5, True), (15, False), (16, True)):
        vote = {"time": NOON.timestamp() + n, "request_id": "gateway", "index": 0, "correct": correct}
        (tmp_path / "votes" / f"{n}.json").write_text(json.dumps(vote) + "\n")
    (query,) = re.findall(r"```sql\n(SELECT log\.version.*?)```", (ROOT / "docs" / "feedback.md").read_text(), re.S)
    query = query.replace("/feedback/votes", f"{tmp_path}/votes").replace("/predictions/days", f"{tmp_path}/days")
    assert sorted(duckdb.sql(query).fetchall()) == [("v0", 1, 1.0), ("v1", 2, 0.5)]
