"""How long the prediction log keeps what, and how much of it."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator
from pathlib import Path

from serve_app.files import delete_partial_files, folder_bytes
from serve_app.prediction_log_format import DAYS, RAW, REJECTED, SUMMARY, TABLES

FILL = 0.9
"""Part of ``max_bytes`` that a run leaves in use: the rest is for the rows until the next run.

The service drops rows once the folder has ``max_bytes``.
"""


def delete_partial(folder: Path) -> None:
    """Delete the unfinished files that a killed run of the ETL left; the caller holds the ETL's lock."""
    for path in itertools.chain((folder / DAYS).glob(".*"), (folder / SUMMARY).glob("*/.*")):
        path.unlink()
    for path in (folder / RAW).glob(".*"):
        delete_partial_files(path.with_name(path.name.removeprefix(".").rpartition(".")[0]))  # of killed replicas


def delete_old(folder: Path, keep_days: int, today: datetime.date) -> list[str]:
    """Delete rows of days more than ``keep_days`` ago, and what was rejected so long ago; return these days."""
    oldest = today - datetime.timedelta(days=keep_days)
    oldest_s = datetime.datetime.combine(oldest, datetime.time(), datetime.UTC).timestamp()
    for path in (folder / REJECTED).glob("*"):
        if path.stat().st_mtime < oldest_s:
            path.unlink()
    return [_delete(path) for path in sorted((folder / DAYS).glob("[!.]*.parquet")) if path.stem < oldest.isoformat()]


def delete_excess(folder: Path, max_bytes: int, today: datetime.date) -> list[str]:
    """Delete the oldest files until the folder has ``FILL`` of ``max_bytes``; return days whose rows were deleted.

    What was rejected goes first, then rows, then counts per hour. Today's rows and counts stay: without its rows, a day
    takes no more.
    """
    excess, expired = folder_bytes(folder) - FILL * max_bytes, list[str]()
    for path in itertools.chain(_rejected(folder), _days(folder, today), _summaries(folder, today)):
        if excess <= 0:
            break
        excess -= path.stat().st_size
        day = _delete(path)
        if path.parent.name == DAYS:
            expired.append(day)
    return expired


def _delete(path: Path) -> str:
    path.unlink()
    return path.stem


def _rejected(folder: Path) -> Iterator[Path]:
    yield from sorted((folder / REJECTED).glob("*"), key=lambda path: path.stat().st_mtime)


def _days(folder: Path, today: datetime.date) -> Iterator[Path]:
    yield from (path for path in sorted((folder / DAYS).glob("[!.]*.parquet")) if path.stem != today.isoformat())


def _summaries(folder: Path, today: datetime.date) -> Iterator[Path]:
    for name in sorted(path.name for path in (folder / SUMMARY / TABLES[0]).glob("[!.]*.parquet")):
        if name != f"{today}.parquet":
            yield from (path for table in TABLES if (path := folder / SUMMARY / table / name).exists())
