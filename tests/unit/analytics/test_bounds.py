"""The prediction log stays within its days and bytes, whatever fails."""

from __future__ import annotations

import datetime
import errno
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve_app.analytics import etl, retention
from serve_app.files import folder_bytes
from serve_app.prediction_log_format import DAYS, RAW, REJECTED, SCHEMA, SUMMARY, TABLES
from tests.support.prediction_rows import days, row, summarized, write_raw

TODAY = datetime.date(2026, 3, 5)


def write_days(folder: Path, count: int = 5, rows: int = 2000) -> None:
    """Write ``count`` days of about the same size, the last one is TODAY."""
    for day in range(count):
        write_raw(folder, f"day{day}", [row(day * rows + n, hours=24 * day) for n in range(rows)])
    etl.run(folder, today=TODAY)


def counted_days(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / SUMMARY / "hours").glob("*.parquet"))


def test_the_oldest_rows_go_first_and_their_counts_stay(tmp_path: Path) -> None:
    """A folder above its limit loses rows of old days until a tenth is free."""
    write_days(tmp_path)
    day_bytes = (tmp_path / DAYS / "2026-03-01.parquet").stat().st_size
    limit = folder_bytes(tmp_path) - day_bytes
    report = etl.run(tmp_path, today=TODAY, max_bytes=limit)
    assert report.expired[0] == "2026-03-01"
    assert sorted([*report.expired, *days(tmp_path)]) == [f"2026-03-0{n}" for n in range(1, 6)]
    assert folder_bytes(tmp_path) <= retention.FILL * limit
    assert len(counted_days(tmp_path)) == 5
    assert etl.run(tmp_path, today=TODAY, max_bytes=limit).expired == []


def test_then_the_oldest_counts_go_and_today_stays(tmp_path: Path) -> None:
    """However small the limit, today's rows and counts stay: a day without its rows would take no more."""
    write_days(tmp_path, count=5, rows=200)
    etl.run(tmp_path, today=TODAY, max_bytes=1)
    assert list(days(tmp_path)) == counted_days(tmp_path) == [str(TODAY)]
    write_raw(tmp_path, "more", [row(9001, hours=96)])
    assert etl.run(tmp_path, today=TODAY, max_bytes=1).late_rows == 0
    assert summarized(tmp_path, str(TODAY)) == 201


def test_what_was_rejected_goes_with_its_days_and_before_rows(tmp_path: Path) -> None:
    """Files that cannot be read may hold rows too: `keep_days` and `max_bytes` hold for them."""
    write_days(tmp_path, count=2)
    for name in ("a", "b"):
        (tmp_path / RAW / f"{name}.parquet").write_bytes(b"PAR1" + bytes(1000))
    etl.run(tmp_path, today=TODAY)
    old = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).timestamp()
    os.utime(tmp_path / REJECTED / "a.parquet", (old, old))
    etl.run(tmp_path, keep_days=30, today=TODAY)
    assert {path.name for path in (tmp_path / REJECTED).iterdir()} == {"b.parquet", "reasons.jsonl"}
    etl.run(tmp_path, today=TODAY, max_bytes=int(folder_bytes(tmp_path) / retention.FILL) - 100)
    assert not (tmp_path / REJECTED / "b.parquet").exists()
    assert len(days(tmp_path)) == 2


def test_a_full_disk_gets_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows cannot be merged, and old ones are deleted all the same; the next run finds the raw file."""
    write_days(tmp_path)
    write_raw(tmp_path, "new", [row(99_999, hours=96)])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(etl, "_write", full)
        with pytest.raises(OSError, match="No space left"):
            etl.run(tmp_path, keep_days=1, today=TODAY)
    assert list(days(tmp_path)) == ["2026-03-04", "2026-03-05"]
    assert etl.run(tmp_path, today=TODAY).raw_rows == 1


def test_unfinished_files_of_a_killed_run_are_deleted(tmp_path: Path) -> None:
    """They count, and nobody else would delete them. What a replica writes at this moment stays."""
    write_days(tmp_path, count=1, rows=10)
    unfinished = [tmp_path / DAYS / ".2026-03-01.parquet.0a", tmp_path / SUMMARY / TABLES[0] / ".x.parquet.0b"]
    for path in (*unfinished, tmp_path / RAW / ".now.parquet.0c", tmp_path / RAW / ".old.parquet.0d"):
        path.write_bytes(b"PAR1")
    os.utime(tmp_path / RAW / ".old.parquet.0d", (0, 0))
    etl.run(tmp_path, today=TODAY)
    assert {path.name for path in tmp_path.rglob(".*")} == {".etl.lock", ".now.parquet.0c"}


def test_columns_of_a_newer_version_are_ignored(tmp_path: Path) -> None:
    """After a rollback, rows of the newer version keep their columns that this version knows."""
    write_raw(tmp_path, "a", [row(1)])
    newer = pa.Table.from_pylist([row(2)], SCHEMA).append_column("blur", pa.array([0.5]))
    pq.write_table(newer, tmp_path / RAW / "b.parquet")
    assert etl.run(tmp_path).rejected_files == []
    assert [each["request_id"] for each in days(tmp_path)["2026-03-01"]] == ["req_1", "req_2"]


def test_a_column_of_another_type_is_rejected_by_name(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row(1)], SCHEMA)
    changed = table.set_column(table.column_names.index("score"), "score", pa.array(["high"]))
    (tmp_path / RAW).mkdir()
    pq.write_table(changed.drop_columns(["image"]), tmp_path / RAW / "a.parquet")
    assert etl.run(tmp_path).rejected_files == [
        "a.parquet: columns that are missing or have another type: image, score"
    ]


def test_little_memory_gives_the_same_rows(tmp_path: Path) -> None:
    """The run beside the service has 512 MB; with less, DuckDB spills to the folder, and leaves nothing there."""
    folders = [tmp_path / name for name in ("much", "little")]
    for folder in folders:
        folder.mkdir()
        write_raw(folder, "a", [row(n) for n in range(20_000)])
    etl.run(folders[0])
    etl.run(folders[1], memory_mb=64)
    assert days(folders[0]) == days(folders[1])
    assert not (folders[1] / etl.SPILL).exists()
