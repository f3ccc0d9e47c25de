"""Turn the prediction log into one clean file per day and hourly summaries; see prediction_log_format.py.

``rejected/`` takes files that are no prediction log or cannot be read, and rows without a time, request id, image
number or status.

A row's key is the server's own id of the request and the image's number, so a raw file that is processed twice counts
once. The request id is no key: a gateway may send the same one with every request. Files of before that column have the
time in its place. A second run, or a run after a crash, gives the same rows.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from pyarrow import ArrowException

from serve_app.analytics import retention
from serve_app.files import atomic_write, create_folder, exclusive_lock
from serve_app.prediction_log_format import (
    ADDED_LATER,
    COMPLETE,
    DAYS,
    ONCE,
    RAW,
    REJECTED,
    SCHEMA,
    SUMMARY,
    TABLES,
    summary_queries,
)

SPILL = ".spill"  # DuckDB's temporary files


class EtlError(Exception):
    """The ETL did nothing; the message says why in one sentence."""


@dataclass
class Report:
    """Counts of one run; ``serve-app etl`` prints them as JSON."""

    raw_files: int = 0
    raw_rows: int = 0
    rejected_files: list[str] = field(default_factory=list)
    rejected_rows: int = 0
    duplicates: int = 0
    late_rows: int = 0  # rows of days that ``keep_days`` has deleted; they are deleted too
    days: list[str] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)


def run(
    folder: Path,
    keep_days: int | None = None,
    today: datetime.date | None = None,
    max_bytes: int | None = None,
    memory_mb: int | None = None,
) -> Report:
    """Move the rows of ``raw/`` to ``days/`` and bring ``summary/`` up to date.

    Args:
        folder: The prediction log's folder, on a local disk.
        keep_days: Delete rows of days that are older than this; their summaries stay. None keeps all rows.
        today: The date in UTC; by default the clock's.
        max_bytes: Delete the oldest files above this, see retention.py; None keeps all.
        memory_mb: Memory of DuckDB in MB, on one thread; above it DuckDB spills to the folder. None is its default,
            80 % of the machine's memory and all cores.

    Raises:
        EtlError: The folder is no prediction log, or another run is in progress.
    """
    if not (folder / RAW).is_dir():
        raise EtlError(f"{folder} holds no prediction log: there is no folder {RAW} in it")
    today = today or datetime.datetime.now(datetime.UTC).date()
    try:
        with exclusive_lock(folder / ".etl.lock"):
            report = Report()
            retention.delete_partial(folder)
            try:
                _update(folder, memory_mb, report)
            finally:  # also on a full disk: this makes room
                if keep_days is not None:
                    report.expired += retention.delete_old(folder, keep_days, today)
                if max_bytes is not None:
                    report.expired += retention.delete_excess(folder, max_bytes, today)
    except BlockingIOError:
        raise EtlError(f"another run is in progress on {folder}: wait until it has ended") from None
    return report


def _update(folder: Path, memory_mb: int | None, report: Report) -> None:
    for name in (DAYS, REJECTED, *(f"{SUMMARY}/{table}" for table in TABLES)):
        create_folder(folder / name)
    with duckdb.connect() as db:
        # DuckDB downloads a missing extension by default; the ETL must work offline.
        db.execute("SET autoinstall_known_extensions = false; SET TimeZone = 'UTC'")
        db.execute("SET temp_directory = ?", [str(folder / SPILL)])
        if memory_mb is not None:
            db.execute(f"SET memory_limit = '{memory_mb} MB'; SET threads = 1")
        files = list(_valid_files(folder, report))
        if files:
            _merge(db, folder, files, report)
        for path in files:
            path.unlink()
    shutil.rmtree(folder / SPILL, ignore_errors=True)


def _valid_files(folder: Path, report: Report) -> Iterator[Path]:
    """Yield the raw files that have the log's columns; move the others to ``rejected/`` with the reason.

    Columns of a newer version are ignored.
    """
    for path in sorted((folder / RAW).glob("[!.]*.parquet")):
        try:
            types = dict(zip((schema := pq.read_schema(path)).names, schema.types, strict=True))
            needed = [column for column in SCHEMA if column.name in types or column.name not in ADDED_LATER]
            differences = ", ".join(column.name for column in needed if types.get(column.name) != column.type)
            reason = f"columns that are missing or have another type: {differences}" if differences else _damage(path)
        except (OSError, ArrowException) as error:
            reason = " ".join(str(error).split())
        if reason is None:
            yield path
        else:
            _reject(folder, path, reason, report)


def _damage(path: Path) -> str | None:
    """Return why the rows of a Parquet file cannot be read, checksums included; None if they can."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for _ in file.iter_batches():
                pass
    except (OSError, ArrowException) as error:
        return " ".join(str(error).split())
    return None


def _reject(folder: Path, path: Path, reason: str, report: Report) -> None:
    path.rename(folder / REJECTED / path.name)
    with (folder / REJECTED / "reasons.jsonl").open("a") as reasons:
        reasons.write(json.dumps({"file": path.name, "reason": reason}) + "\n")
    report.rejected_files.append(f"{path.name}: {reason}")


def _merge(db: duckdb.DuckDBPyConnection, folder: Path, files: list[Path], report: Report) -> None:
    """Merge raw rows into the files of their days, and write the summaries of these days anew."""
    raw = _read(db, files)
    complete, rejected = raw.filter(COMPLETE), raw.filter(f"NOT ({COMPLETE})")
    report.raw_files, report.raw_rows, report.rejected_rows = len(files), len(raw), len(rejected)
    if report.rejected_rows:
        _write(rejected, folder / REJECTED / f"rows-{files[0].name}")
    for (day,) in complete.project("strftime(time, '%Y-%m-%d') AS day").distinct().order("day").fetchall():
        path = folder / DAYS / f"{day}.parquet"
        rows = complete.filter(f"strftime(time, '%Y-%m-%d') = '{day}'")
        summaries = [folder / SUMMARY / table / path.name for table in TABLES]
        if path.exists() and (damage := _damage(path)):
            for summary in summaries:  # else the day would count as deleted by ``keep_days``
                summary.unlink(missing_ok=True)
            _reject(folder, path, damage, report)
        if path.exists():
            rows = rows.union(_read(db, [path]))  # UNION ALL
        elif all(summary.exists() for summary in summaries):
            report.late_rows += len(rows)  # a summary of these rows alone would replace the day's counts
            continue
        before = len(rows.create_view("rows"))
        _write(db.sql(f"SELECT * FROM rows {ONCE} ORDER BY time, request_id, request_uuid, image"), path)
        written = db.read_parquet(str(path)).create_view("day")
        report.duplicates += before - len(written)
        report.days.append(day)
        for summary, query in zip(summaries, summary_queries("day").values(), strict=True):
            _write(db.sql(f"SELECT * FROM ({query}) ORDER BY ALL"), summary)


def _read(db: duckdb.DuckDBPyConnection, files: list[Path]) -> duckdb.DuckDBPyRelation:
    """Read Parquet files with the log's columns; columns that old files lack are NULL."""
    rows = db.read_parquet([str(path) for path in files], union_by_name=True)
    columns = (name if name in rows.columns else f"NULL::{ADDED_LATER[name]} AS {name}" for name in SCHEMA.names)
    return rows.project(", ".join(columns))


def _write(rows: duckdb.DuckDBPyRelation, path: Path) -> None:
    with atomic_write(path) as temporary:
        rows.write_parquet(str(temporary), compression="zstd")
