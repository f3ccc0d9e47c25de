"""Read the prediction log while the service writes it and the ETL reorganizes it: each row counts once.

Finished days have summaries. Rows of the last minutes are still in ``raw/``; they are summarized here, in memory, after
those that the ETL has already copied to ``days/`` are left out. Files that cannot be read are left out: the ETL will
reject them. This file knows no Streamlit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.prediction_log_format import (
    COMPLETE,
    DAYS,
    EMBEDDING,
    KEY,
    ONCE,
    RAW,
    SCHEMA,
    SUMMARY,
    TABLES,
    summary_queries,
)

COLUMNS = pa.schema([column for column in SCHEMA if column.name != EMBEDDING])  # nothing here draws embeddings
MAX_RAW_BYTES = 64 * 1024 * 1024
"""Most bytes of raw files that are read, newest first: more than that wait only if the ETL does not run."""
Signature = tuple[tuple[str, int], ...]  # name and time of change of each file
FileId = tuple[Path, int]  # path and time of change in ns


class RawFiles:
    """The rows in ``raw/``. A file never changes, so each is read once.

    Attributes:
        unread: Files above MAX_RAW_BYTES, which the last ``read`` left out.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / RAW
        self._tables: dict[FileId, pa.Table] = {}
        self.unread = 0

    def read(self) -> pa.Table:
        """Return the rows of all files, with the columns of COLUMNS; without the files that cannot be read."""
        before = self._tables
        self._tables = {file: before[file] if file in before else _read_raw(file[0]) for file in self._newest()}
        return pa.concat_tables([COLUMNS.empty_table(), *self._tables.values()])

    def _newest(self) -> Iterator[FileId]:
        self.unread = total = 0
        for path in sorted(self._folder.glob("[!.]*.parquet"), key=lambda path: path.name, reverse=True):
            with suppress(OSError):  # the ETL has deleted it
                total += (status := path.stat()).st_size
                if total <= MAX_RAW_BYTES:
                    yield path, status.st_mtime_ns
                else:
                    self.unread += 1


def log_signature(folder: Path) -> Signature:
    """Return a value that changes whenever a file of the log appears, changes or disappears."""
    files = []
    for pattern in (f"{RAW}/[!.]*.parquet", f"{DAYS}/[!.]*.parquet", *(f"{SUMMARY}/{t}/[!.]*.parquet" for t in TABLES)):
        for path in folder.glob(pattern):
            with suppress(OSError):
                files.append((str(path.relative_to(folder)), path.stat().st_mtime_ns))
    return tuple(sorted(files))


class LogSnapshot:
    """The prediction log at one moment, as tables in DuckDB.

    A day is *unfinished* if the ETL was killed, or is at work, between its rows and its summaries. Such a day is
    summarized from its rows.

    Attributes:
        days: Days with counts, in order.
    """

    def __init__(self, folder: Path, raw: RawFiles) -> None:
        self._folder = folder
        self._db = duckdb.connect()
        # DuckDB must not download an extension while a page is being drawn.
        self._db.execute("SET autoinstall_known_extensions = false; SET GLOBAL TimeZone = 'UTC'")
        rows = raw.read()  # before the days: rows that move meanwhile are then found twice, not missed
        self._days = {path.stem: path for path in folder.glob(f"{DAYS}/[!.]*.parquet") if _is_parquet(path)}
        summarized = {path.stem for path in folder.glob(f"{SUMMARY}/{TABLES[0]}/[!.]*.parquet")}
        late = summarized - set(self._days)
        try:
            self._count(rows, late)
        except duckdb.Error:  # the rows of a day are damaged behind a footer that is whole
            self._days = {day: path for day, path in self._days.items() if _is_whole(path)}
            self._count(rows, late)
        new = self._db.sql("SELECT DISTINCT strftime(hour, '%Y-%m-%d') FROM live_hours").fetchall()
        self.days = sorted(map(date.fromisoformat, summarized.union(day for (day,) in new)))

    def query(self, table: str, days: Sequence[date], query: str, values: dict[str, str]) -> pd.DataFrame:
        """Run a query that knows the rows of a table on these days as ``log``.

        Args:
            table: One of TABLES, or ``rows`` for the rows themselves.
            days: The days.
            query: SQL with ``$name`` for each of ``values``.
            values: Values of the query.

        Returns:
            The result. Files that turn out to be damaged, or have been deleted meanwhile, are left out.

        Raises:
            LookupError: The log has nothing on these days.
        """
        names = [str(day) for day in days]
        if table == "rows":
            files = [self._days[day] for day in names if day in self._days]
        else:
            finished = (day for day in names if day not in self._unfinished)
            files = [self._folder / SUMMARY / table / f"{day}.parquet" for day in finished]
        files = [path for path in files if _is_parquet(path)]
        quoted, time = ", ".join(f"'{day}'" for day in names), "time" if table == "rows" else "hour"
        live = f"SELECT * FROM live_{table} WHERE strftime({time}, '%Y-%m-%d') IN ({quoted})"
        cursor = self._db.cursor()  # sessions share the snapshot; each has its own thread
        has_any = files or cursor.execute(f"SELECT count(*) FROM ({live})").fetchall()[0][0]
        if not has_any and (table == "rows" or not set(days) & set(self.days)):
            raise LookupError(f"The prediction log has nothing from {names[0]} to {names[-1]}")
        try:
            return cursor.execute(f"WITH log AS ({_union(files, live)}) {query}", values).df()
        except duckdb.Error:
            files = [path for path in files if _is_whole(path)]
            return cursor.execute(f"WITH log AS ({_union(files, live)}) {query}", values).df()

    def _count(self, rows: pa.Table, late: Iterable[str]) -> None:
        """Create the tables of new rows and of what has no summary."""
        self._unfinished = {day for day, path in self._days.items() if not self._is_summarized(day, path)}
        self._add_new_rows(rows, late)
        self._summarize()

    def _is_summarized(self, day: str, rows: Path) -> bool:
        """Return whether all summaries of a day were written after its rows, and can be read."""
        summaries = [self._folder / SUMMARY / table / f"{day}.parquet" for table in TABLES]
        try:
            newer = min(path.stat().st_mtime_ns for path in summaries) >= rows.stat().st_mtime_ns
        except OSError:
            return False
        return newer and all(map(_is_parquet, summaries))

    def _add_new_rows(self, rows: pa.Table, late: Iterable[str]) -> None:
        """Create ``live_rows``: rows that are in no file of a day; those of ``late`` days came after its deletion."""
        self._db.register("raw", rows)
        days = ", ".join(f"'{day}'" for day in late) or "''"
        self._db.execute(
            f"CREATE OR REPLACE TABLE live_rows AS SELECT * FROM raw WHERE {COMPLETE} "
            f"AND strftime(time, '%Y-%m-%d') NOT IN ({days}) {ONCE}"
        )
        self._db.unregister("raw")
        ((first, last),) = self._db.sql("SELECT min(time)::VARCHAR, max(time)::VARCHAR FROM live_rows").fetchall()
        if first is not None and (files := [self._days[day] for day in self._days if first[:10] <= day <= last[:10]]):
            same = " AND ".join(f"known.{name} IS NOT DISTINCT FROM live_rows.{name}" for name in KEY)
            # DuckDB reads only the part of a day that these times are in: its rows are sorted by time.
            self._db.execute(
                f"DELETE FROM live_rows USING (SELECT {_key_columns(files)} FROM ({_read_files(files)}) "
                f"WHERE time BETWEEN TIMESTAMPTZ '{first}' AND TIMESTAMPTZ '{last}') AS known WHERE {same}"
            )

    def _summarize(self) -> None:
        """Create ``live_hours`` and the other tables: counts of new rows, and of all rows of unfinished days."""
        rows = "SELECT * FROM live_rows"
        if files := [self._days[day] for day in sorted(self._unfinished)]:
            rows += f" UNION ALL BY NAME {_read_files(files)}"
        self._db.execute(f"CREATE OR REPLACE VIEW counted AS {rows}")
        for table, query in summary_queries("counted").items():
            self._db.execute(f"CREATE OR REPLACE TABLE live_{table} AS {query}")


def _read_raw(path: Path) -> pa.Table:
    """Return a raw file's rows with the columns of COLUMNS; columns that are missing or of another kind are null."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read([name for name in COLUMNS.names if name in file.schema_arrow.names])
    except (OSError, pa.ArrowException):
        return COLUMNS.empty_table()
    columns = [_column(table, column) for column in COLUMNS]
    return pa.Table.from_arrays(columns, schema=COLUMNS)


def _column(table: pa.Table, column: pa.Field) -> pa.Array | pa.ChunkedArray:
    with suppress(KeyError, pa.ArrowException):
        return pc.cast(table[column.name], column.type)
    return pa.nulls(len(table), column.type)


def _is_parquet(path: Path) -> bool:
    """Return whether a file is there and its footer can be read."""
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return False
    return True


def _is_whole(path: Path) -> bool:
    """Return whether all rows of a Parquet file can be read."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for _ in file.iter_batches():
                pass
    except (OSError, pa.ArrowException):
        return False
    return True


def _union(files: list[Path], live: str) -> str:
    return f"{_read_files(files)} UNION ALL BY NAME {live}" if files else live


def _key_columns(files: list[Path]) -> str:
    """Return the columns of KEY in SQL, NULL where files of older versions have none."""
    known = {name for path in files for name in pq.read_schema(path).names}
    return ", ".join(name if name in known else f"NULL::VARCHAR AS {name}" for name in KEY)


def _read_files(paths: list[Path]) -> str:
    """Return a query of all rows of Parquet files, by name: files of older versions have fewer columns."""
    quoted = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    return f"SELECT * FROM read_parquet([{quoted}], union_by_name = true)"
