"""Prediction logs for the ETL: single rows, raw files of this version and of older ones, and what the ETL wrote."""

from __future__ import annotations

import datetime
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from serve_app.observability.prediction_log import write_rows
from serve_app.prediction_log_format import ADDED_LATER, DAYS, RAW, SCHEMA, SUMMARY

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
        **{"head": None, "head_version": None, "embedding": None},
    }
    return complete | changes


def write_raw(folder: Path, name: str, rows: list[Row]) -> None:
    (folder / RAW).mkdir(exist_ok=True)
    values = [tuple(row[column] for column in SCHEMA.names) for row in rows]
    write_rows(fs.LocalFileSystem(), str(folder / RAW / f"{name}.parquet"), values)


def write_old_raw(folder: Path, name: str, rows: list[Row]) -> None:
    """Write a raw file as versions without the columns ``request_uuid`` and ``embedding`` did."""
    (folder / RAW).mkdir(exist_ok=True)
    schema = pa.schema([column for column in SCHEMA if column.name not in ADDED_LATER])
    old = [{column: row[column] for column in schema.names} for row in rows]
    pq.write_table(pa.Table.from_pylist(old, schema), folder / RAW / f"{name}.parquet")


def summarized(folder: Path, day: str) -> int:
    """Return the images of a day in the summary."""
    path = folder / SUMMARY / "hours" / f"{day}.parquet"
    return int(sum(pq.read_table(path).to_pydict()["images"]))


def days(folder: Path) -> dict[str, list[Row]]:
    return {path.stem: pq.read_table(path).to_pylist() for path in sorted((folder / DAYS).glob("*.parquet"))}
