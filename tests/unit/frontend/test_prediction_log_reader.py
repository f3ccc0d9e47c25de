"""Today's raw rows united with finished days: each row counts once, whatever the service and the ETL do meanwhile."""

from __future__ import annotations

import datetime
import os
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frontend import prediction_log_reader
from frontend.prediction_log_queries import DateRange, PredictionLogQueries
from frontend.prediction_log_reader import LogSnapshot, RawFiles, log_signature
from serve_app.analytics import etl
from serve_app.prediction_log_format import DAYS, RAW, SCHEMA, SUMMARY, TABLES
from tests.support.prediction_rows import row, write_old_raw, write_raw

DAY = date(2026, 3, 1)
ALL = DateRange(DAY, DAY + datetime.timedelta(days=2))


def counted(folder: Path) -> int:
    """Return the images that the page counts."""
    return int(PredictionLogQueries(folder).statuses(ALL)["images"].sum())


def test_rows_count_before_the_etl_has_seen_them(tmp_path: Path) -> None:
    """Every figure of the page comes from raw rows alone, and stays the same when the ETL has run."""
    write_raw(tmp_path, "a", [row(n, hours=n % 30) for n in range(200)])
    write_raw(tmp_path, "b", [row(n, status="invalid_image", label=None, score=None) for n in range(200, 210)])

    def figures() -> dict[str, Any]:
        log = PredictionLogQueries(tmp_path)
        return {
            "days": log.days(),
            **{name: getattr(log, name)(ALL).to_dict("list") for name in ("volume", "statuses", "classes", "versions")},
            "times": log.phase_quantiles(ALL),
            "least": log.least_confident(ALL).to_dict("list"),
            "drift": log.drift(DateRange(DAY, DAY), ALL),
        }

    before = figures()
    etl.run(tmp_path)
    assert not list((tmp_path / RAW).iterdir())
    after = figures()
    for name in ("classes", "versions"):  # sums of floats in another order
        for column, values in before.pop(name).items():
            assert after[name][column] == (values if column in ("label", "version") else pytest.approx(values))
    assert before == {name: after[name] for name in before}
    assert before["days"] == [DAY, DAY + datetime.timedelta(days=1)]


def test_new_rows_join_a_finished_day(tmp_path: Path) -> None:
    write_raw(tmp_path, "a", [row(n) for n in range(10)])
    etl.run(tmp_path)
    write_raw(tmp_path, "b", [row(n) for n in range(10, 15)])
    write_raw(tmp_path, "c", [row(20, hours=24)])
    assert counted(tmp_path) == 16
    assert len(PredictionLogQueries(tmp_path).least_confident(ALL)) == 16


def test_rows_of_before_and_after_the_etl_count_once(tmp_path: Path) -> None:
    """A killed ETL leaves raw files whose rows are in their day; so does one that is at work."""
    same = [row(n, request_id="gateway", image=n % 2, request_uuid=f"uuid_{n // 2}") for n in range(10)]
    write_raw(tmp_path, "a", same)
    shutil.copy(tmp_path / RAW / "a.parquet", tmp_path / "kept")
    etl.run(tmp_path)
    shutil.copy(tmp_path / "kept", tmp_path / RAW / "a.parquet")
    write_raw(tmp_path, "b", [*same[:3], row(11)])
    assert counted(tmp_path) == 11


def test_rows_of_older_versions_count_once(tmp_path: Path) -> None:
    """They have no id of the server: request id, number and time tell them apart."""
    old = [row(n, request_id="gateway") for n in range(5)]
    write_old_raw(tmp_path, "old", old)
    etl.run(tmp_path)
    write_old_raw(tmp_path, "old", old)
    write_old_raw(tmp_path, "more", [row(7, request_id="gateway")])
    assert counted(tmp_path) == 6


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_day_that_is_half_converted_is_counted_from_its_rows(tmp_path: Path, written: int) -> None:
    """The ETL was killed after the rows of a day, before all of its summaries; the raw file is still there."""
    write_raw(tmp_path, "a", [row(n) for n in range(10)])
    etl.run(tmp_path)
    old = {table: (tmp_path / SUMMARY / table / f"{DAY}.parquet").read_bytes() for table in TABLES}
    write_raw(tmp_path, "b", [row(n) for n in range(10, 15)])
    shutil.copy(tmp_path / RAW / "b.parquet", tmp_path / "kept")
    etl.run(tmp_path)
    shutil.copy(tmp_path / "kept", tmp_path / RAW / "b.parquet")
    rows_ns = (tmp_path / DAYS / f"{DAY}.parquet").stat().st_mtime_ns
    for table in TABLES[written:]:
        path = tmp_path / SUMMARY / table / f"{DAY}.parquet"
        path.write_bytes(old[table])
        os.utime(path, ns=(rows_ns - 1, rows_ns - 1))
    log = PredictionLogQueries(tmp_path)
    assert counted(tmp_path) == 15
    assert log.classes(ALL)["images"].sum() == log.histogram(ALL, "score")["images"].sum() == 15
    (tmp_path / SUMMARY / TABLES[written] / f"{DAY}.parquet").unlink()
    assert counted(tmp_path) == 15


def test_late_rows_of_a_deleted_day_do_not_count(tmp_path: Path) -> None:
    """As in the ETL, which will drop them: the counts of the day are final."""
    write_raw(tmp_path, "a", [row(n) for n in range(10)])
    etl.run(tmp_path, keep_days=1, today=date(2026, 3, 3))
    write_raw(tmp_path, "b", [row(11), row(12, hours=48)])
    assert counted(tmp_path) == 11
    with pytest.raises(LookupError):
        PredictionLogQueries(tmp_path).least_confident(DateRange(DAY, DAY))


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip_byte, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x")])
def test_a_damaged_raw_file_hides_no_other(tmp_path: Path, damage: Any) -> None:
    write_raw(tmp_path, "a", [row(n) for n in range(1000)])
    write_raw(tmp_path, "b", [row(2000)])
    damage(tmp_path / RAW / "a.parquet")
    assert counted(tmp_path) == 1


def test_what_is_being_written_is_not_read(tmp_path: Path) -> None:
    """Unfinished files have names that start with a dot."""
    write_raw(tmp_path, "a", [row(1)])
    for folder in (RAW, DAYS, f"{SUMMARY}/hours"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / f".{DAY}.parquet.0a1b").write_bytes(b"PAR1 half of a file")
    assert counted(tmp_path) == 1
    assert len(log_signature(tmp_path)) == 1


def test_a_file_that_vanishes_while_it_is_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ETL has copied its rows to their day before it deletes it, so they are found there."""
    write_raw(tmp_path, "a", [row(n) for n in range(5)])
    real = prediction_log_reader._read_raw

    def vanishing(path: Path) -> pa.Table:
        etl.run(tmp_path)
        assert not path.exists()
        return real(path)

    monkeypatch.setattr(prediction_log_reader, "_read_raw", vanishing)
    assert counted(tmp_path) == 5


def test_columns_of_a_newer_version_hide_nothing(tmp_path: Path) -> None:
    """More columns are ignored; a column of another kind is empty, and without its key a row does not count."""
    write_raw(tmp_path, "a", [row(1)])
    table = pa.Table.from_pylist([row(2)], SCHEMA)
    pq.write_table(table.append_column("blur", pa.array([[0.5]])), tmp_path / RAW / "b.parquet")
    index = table.column_names.index("score")
    pq.write_table(table.set_column(index, "score", pa.array(["high"])), tmp_path / RAW / "c.parquet")
    pq.write_table(table.drop_columns(["request_id"]), tmp_path / RAW / "d.parquet")
    pq.write_table(pa.table({"other": [1]}), tmp_path / RAW / "e.parquet")
    assert counted(tmp_path) == 2


@pytest.mark.parametrize("where", [DAYS, *(f"{SUMMARY}/{table}" for table in TABLES)])
@pytest.mark.parametrize("cut", [True, False], ids=["no footer", "no pages"])
def test_a_damaged_day_hides_no_other(tmp_path: Path, where: str, cut: bool) -> None:
    """Whatever a power cut or a bad disk leaves: the other days, and raw rows, are shown."""
    write_raw(tmp_path, "a", [row(n, hours=24 * (n % 2)) for n in range(2000)])
    etl.run(tmp_path)
    write_raw(tmp_path, "b", [row(5000)])
    path = tmp_path / where / f"{DAY}.parquet"
    content = path.read_bytes()
    path.write_bytes(b"" if cut else content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    log = PredictionLogQueries(tmp_path)
    second = DateRange(DAY + datetime.timedelta(days=1), DAY + datetime.timedelta(days=1))
    assert log.statuses(second)["images"].sum() == log.classes(second)["images"].sum() == 1000
    assert counted(tmp_path) >= 1001
    log.classes(ALL)
    log.histogram(ALL, "score")
    log.least_confident(ALL)


def test_raw_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that refreshes reads new files only, and forgets those that the ETL has deleted."""
    read: list[str] = []
    real = prediction_log_reader._read_raw

    def counting(path: Path) -> pa.Table:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(prediction_log_reader, "_read_raw", counting)
    raw = RawFiles(tmp_path)
    write_raw(tmp_path, "a", [row(1)])
    assert len(raw.read()) == 1
    write_raw(tmp_path, "b", [row(2)])
    assert len(raw.read()) == 2
    assert read == ["a.parquet", "b.parquet"]
    etl.run(tmp_path)
    assert len(raw.read()) == 0
    assert raw._tables == {}


def test_too_many_raw_bytes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an ETL the page shows the newest rows, and needs no more memory."""
    for name in "abc":
        write_raw(tmp_path, name, [row(ord(name))])
    monkeypatch.setattr(prediction_log_reader, "MAX_RAW_BYTES", 2 * (tmp_path / RAW / "a.parquet").stat().st_size + 200)
    raw = RawFiles(tmp_path)
    assert raw.read()["request_id"].to_pylist() == [f"req_{ord(name)}" for name in "cb"]
    assert raw.unread == 1


def test_the_signature_changes_with_the_log(tmp_path: Path) -> None:
    """New rows, and what the ETL makes of them; not the lock or a rejected file."""
    signatures = [log_signature(tmp_path)]
    for step in ("a", "b"):
        write_raw(tmp_path, step, [row(ord(step))])
        signatures.append(log_signature(tmp_path))
    etl.run(tmp_path)
    signatures.append(log_signature(tmp_path))
    assert len(set(signatures)) == 4
    assert log_signature(tmp_path) == signatures[-1]


def test_an_empty_folder_has_no_days(tmp_path: Path) -> None:
    """Nor has one that does not exist yet."""
    assert LogSnapshot(tmp_path / "none", RawFiles(tmp_path / "none")).days == []
