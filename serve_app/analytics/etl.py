"""Prediction log -> one clean file per day and hourly summaries: ``python -m serve_app.analytics.etl FOLDER``.

Reads the files that the service has written to ``raw/`` and takes them away once their rows are in ``days/``, each row
once, in the order of time. Running it twice, or again after a crash, gives the same rows. Files that are no
prediction log and rows without a time, a request or a status go to ``rejected/``. ``summary/`` has counts by hour, from
which the analytics page draws; it stays when days that are older than ``--keep-days`` go.

Exit code 0: done. 1: something was rejected; the rest is done. 2: nothing was done.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from pyarrow import ArrowException

from serve_app.files import whole
from serve_app.observability.prediction_log import RAW, SCHEMA

DAYS, SUMMARY, REJECTED = "days", "summary", "rejected"
WHOLE = "time IS NOT NULL AND request_id IS NOT NULL AND image IS NOT NULL AND status IS NOT NULL"
# Histograms that can be added up: metric -> lower and upper end of the bin of x.
GROWTH, LEAST = 1.1, 0.01
LOG_BIN = f"floor(ln(greatest(x, {LEAST}) / {LEAST}) / ln({GROWTH}))"
LOG_ENDS = f"{LEAST} * {GROWTH} ** {LOG_BIN}", f"{LEAST} * {GROWTH} ** ({LOG_BIN} + 1)"


def _steps(width: float) -> tuple[str, str]:
    return f"floor(x / {width}) * {width}", f"(floor(x / {width}) + 1) * {width}"


BINS = {
    **dict.fromkeys(("decode_ms", "queue_ms", "model_ms", "total_ms", "sharpness", "bytes"), LOG_ENDS),
    **dict.fromkeys(("score", "margin"), _steps(0.02)),
    "entropy": _steps(0.1),
    **dict.fromkeys(("brightness", "contrast"), _steps(4)),
    "batch_size": _steps(1),
}
KEYS = "date_trunc('hour', time) AS hour, variant, version"
HISTOGRAMS = " UNION ALL ".join(
    f"SELECT {KEYS}, '{name}' AS metric, {low} AS low, {high} AS high, count(*) AS images "
    f"FROM (SELECT *, {name}::DOUBLE AS x FROM day WHERE {name} IS NOT NULL) GROUP BY ALL"
    for name, (low, high) in BINS.items()
)
TABLES = {
    "hours": f"SELECT {KEYS}, status, count(*) AS images, sum(bytes) AS bytes FROM day GROUP BY ALL",
    "classes": f"SELECT {KEYS}, label, count(*) AS images, sum(score) AS score_sum FROM day "
    "WHERE label IS NOT NULL GROUP BY ALL",
    "histograms": HISTOGRAMS,
}


class EtlError(Exception):
    """Why nothing was done, in one sentence."""


@dataclass
class Report:
    """What was done."""

    raw_files: int = 0
    raw_rows: int = 0
    rejected_files: list[str] = field(default_factory=list)
    rejected_rows: int = 0
    duplicates: int = 0
    days: list[str] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)


def run(folder: Path, keep_days: int | None = None, today: datetime.date | None = None) -> Report:
    """Bring ``days/`` and ``summary/`` up to date.

    Args:
        folder: Of the prediction log.
        keep_days: Days before today that stay; None keeps all.
        today: In UTC.

    Raises:
        EtlError: The folder is no prediction log, or another run is at work on it.
    """
    if not (folder / RAW).is_dir():
        raise EtlError(f"{folder} holds no prediction log: there is no folder {RAW} in it")
    for each in (DAYS, REJECTED, *(f"{SUMMARY}/{table}" for table in TABLES)):
        (folder / each).mkdir(parents=True, exist_ok=True)
    report = Report()
    with _alone(folder), duckdb.connect() as db:
        db.execute("SET autoinstall_known_extensions = false; SET TimeZone = 'UTC'")  # nothing is downloaded
        db.execute(f"SET temp_directory = '{_quoted(folder / '.spill')}'")
        files = list(_check(folder, report))
        if files:
            report.raw_files = len(files)
            _take_in(db, folder, files, report)
        for path in files:
            path.unlink()
    shutil.rmtree(folder / ".spill", ignore_errors=True)
    if keep_days is not None:
        oldest = (today or datetime.datetime.now(datetime.UTC).date()) - datetime.timedelta(days=keep_days)
        for path in sorted((folder / DAYS).glob("*.parquet")):
            if path.stem < oldest.isoformat():
                path.unlink()
                report.expired.append(path.stem)
    return report


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / ".etl.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EtlError(f"another run is at work on {folder}: wait for its end") from None
        yield


def _check(folder: Path, report: Report) -> Iterator[Path]:
    """Give the raw files that are a prediction log; set the others aside with the reason."""
    for path in sorted((folder / RAW).glob("[!.]*.parquet")):
        try:
            found = pq.read_schema(path)
            others = ", ".join(sorted(set(found.names) ^ set(SCHEMA.names))) or "types"
            problem = "" if found.equals(SCHEMA) else f"not the log's columns: {others}"
        except (OSError, ArrowException) as error:
            problem = " ".join(str(error).split())
        if not problem:
            yield path
            continue
        path.rename(folder / REJECTED / path.name)
        with (folder / REJECTED / "reasons.jsonl").open("a") as reasons:
            reasons.write(json.dumps({"file": path.name, "reason": problem}) + "\n")
        report.rejected_files.append(f"{path.name}: {problem}")


def _take_in(db: duckdb.DuckDBPyConnection, folder: Path, files: list[Path], report: Report) -> None:
    listed = ", ".join(f"'{_quoted(path)}'" for path in files)
    db.execute(f"CREATE VIEW raw AS SELECT * FROM read_parquet([{listed}])")
    report.raw_rows, good = _one(db, f"SELECT count(*), count(*) FILTER ({WHOLE}) FROM raw")
    report.rejected_rows = report.raw_rows - good
    if report.rejected_rows:
        _write(db, f"SELECT * FROM raw WHERE NOT ({WHOLE})", folder / REJECTED / f"rows-{files[0].name}")
    days = db.execute(f"SELECT DISTINCT strftime(time, '%Y-%m-%d') FROM raw WHERE {WHOLE} ORDER BY 1").fetchall()
    for (day,) in days:
        path = folder / DAYS / f"{day}.parquet"
        rows = f"SELECT * FROM raw WHERE {WHOLE} AND strftime(time, '%Y-%m-%d') = '{day}'"
        if path.exists():
            rows += f" UNION ALL SELECT * FROM read_parquet('{_quoted(path)}')"
        (before,) = _one(db, f"SELECT count(*) FROM ({rows})")
        once = "QUALIFY row_number() OVER (PARTITION BY request_id, image ORDER BY time) = 1"
        _write(db, f"SELECT * FROM ({rows}) {once} ORDER BY time, request_id, image", path)
        db.execute(f"CREATE OR REPLACE VIEW day AS SELECT * FROM read_parquet('{_quoted(path)}')")
        (after,) = _one(db, "SELECT count(*) FROM day")
        report.duplicates += before - after
        report.days.append(day)
        for table, query in TABLES.items():
            _write(db, f"SELECT * FROM ({query}) ORDER BY ALL", folder / SUMMARY / table / f"{day}.parquet")


def _one(db: duckdb.DuckDBPyConnection, query: str) -> tuple[int, ...]:
    found = db.execute(query).fetchone()
    assert found is not None  # an aggregate always has a row
    return found


def _write(db: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Write a query's rows as a file that is there whole or not at all."""
    with whole(path) as unfinished:
        db.execute(f"COPY ({query}) TO '{_quoted(unfinished)}' (FORMAT parquet, COMPRESSION zstd)")


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.analytics.etl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="the prediction log's: `log.folder` of the Ingress")
    parser.add_argument("--keep-days", type=int, help="days before today that stay; default: all")
    options = parser.parse_args()
    if options.keep_days is not None and options.keep_days < 0:
        parser.error("--keep-days: 0 or more")
    try:
        report = run(options.folder, options.keep_days)
    except (EtlError, OSError, duckdb.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(asdict(report)))
    if report.rejected_files or report.rejected_rows:
        print(f"error: some was rejected, see {options.folder / REJECTED}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
