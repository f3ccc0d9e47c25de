"""The ETL on real Parquet files: each row once, no row lost, the same result after a second run or a crash."""

from __future__ import annotations

import datetime
import json
import random
import re
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from typer.testing import CliRunner

from serve_app.analytics import etl
from serve_app.cli.main import app
from serve_app.files import exclusive_lock
from serve_app.observability.prediction_log import RAW, SCHEMA, write_rows
from tests.support.paths import ROOT

NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
Row = dict[str, Any]


def row(number: int, hours: float = 0, **changes: Any) -> Row:
    generator = random.Random(number)
    complete: Row = {
        **{"time": NOON + datetime.timedelta(hours=hours, seconds=number), "request_uuid": f"uuid_{number}"},
        **{"request_id": f"req_{number}", "image": 0},
        **{
            "status": "ok",
            "variant": "main",
            "version": "v1",
            "class_id": 1,
            "label": generator.choice(["cat", "dog"]),
        },
        **{"score": generator.random(), "margin": 0.1, "entropy": 1.0, "format": "jpeg", "width": 640, "height": 480},
        **{"bytes": 1000, "brightness": 100.0, "contrast": 40.0, "sharpness": 5.0, "decode_ms": 4.0, "queue_ms": 0.0},
        **{"model_ms": 20.0, "total_ms": 30 + generator.random() * 100, "batch_size": 2},
    }
    return complete | changes


def write_raw(folder: Path, name: str, rows: list[Row]) -> None:
    (folder / RAW).mkdir(exist_ok=True)
    values = [tuple(row[column] for column in SCHEMA.names) for row in rows]
    write_rows(fs.LocalFileSystem(), str(folder / RAW / f"{name}.parquet"), values)


def write_old_raw(folder: Path, name: str, rows: list[Row]) -> None:
    """Write a raw file as versions without the column ``request_uuid`` did."""
    (folder / RAW).mkdir(exist_ok=True)
    schema = SCHEMA.remove(SCHEMA.get_field_index("request_uuid"))
    old = [{column: row[column] for column in schema.names} for row in rows]
    pq.write_table(pa.Table.from_pylist(old, schema), folder / RAW / f"{name}.parquet")


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


def summarized(folder: Path, day: str) -> int:
    """Return the images of a day in the summary."""
    path = folder / etl.SUMMARY / "hours" / f"{day}.parquet"
    return int(sum(pq.read_table(path).to_pydict()["images"]))


def days(folder: Path) -> dict[str, list[Row]]:
    return {path.stem: pq.read_table(path).to_pylist() for path in sorted((folder / etl.DAYS).glob("*.parquet"))}


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
    assert len(list((tmp_path / etl.DAYS).glob("*"))) == 1


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


def test_days_of_older_versions_take_new_rows(tmp_path: Path) -> None:
    """A file of a day that lacks the column keeps its rows."""
    write_old_raw(tmp_path, "old", [row(1)])
    (tmp_path / etl.DAYS).mkdir()
    (tmp_path / RAW / "old.parquet").rename(tmp_path / etl.DAYS / "2026-03-01.parquet")
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
    assert (tmp_path / etl.REJECTED / "a.parquet").exists()


@pytest.mark.parametrize("damage", [erase, erase_pages])
def test_a_damaged_day_stops_no_run(tmp_path: Path, damage: Any) -> None:
    """The file of the day goes to rejected/, and the day begins again with the rows that come later."""
    write_raw(tmp_path, "a", [row(n) for n in range(1000)])
    etl.run(tmp_path)
    damage(tmp_path / etl.DAYS / "2026-03-01.parquet")
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
    (counted,) = pq.read_table(tmp_path / etl.SUMMARY / "classes").to_pylist()
    assert (counted["images"], counted["score_sum"]) == (2, 0.5)
    metrics = pq.read_table(tmp_path / etl.SUMMARY / "histograms").to_pydict()
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


def test_rejected_files_and_rows_are_kept_apart(tmp_path: Path) -> None:
    """Files that are no prediction log and incomplete rows go to rejected/; the other rows reach their days."""
    write_raw(tmp_path, "a", [row(1), row(2, request_id=None), row(3)])
    (tmp_path / RAW / "torn.parquet").write_bytes(b"PAR1 half of a file")
    pq.write_table(pa.table({"other": [1]}), tmp_path / RAW / "other.parquet")
    report = etl.run(tmp_path)
    assert [row["request_id"] for row in days(tmp_path)["2026-03-01"]] == ["req_1", "req_3"]
    assert (report.rejected_rows, len(report.rejected_files)) == (1, 2)
    assert {path.name for path in (tmp_path / etl.REJECTED).iterdir()} == {
        *("rows-a.parquet", "torn.parquet", "other.parquet", "reasons.jsonl")
    }


def test_summaries_add_up(tmp_path: Path) -> None:
    """Counts per hour, class and histogram bin add up to the rows they summarize."""
    rows = [row(n, hours=n % 3, version=f"v{n % 2}") for n in range(300)]
    rows += [row(n, status="invalid_image", version=None, label=None, score=None) for n in range(300, 310)]
    write_raw(tmp_path, "a", rows)
    etl.run(tmp_path)

    def select(query: str, table: str) -> list[Any]:
        path = tmp_path / etl.SUMMARY / table / "2026-03-01.parquet"
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
    assert len(list((tmp_path / etl.SUMMARY / "hours").glob("*"))) == 3


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
