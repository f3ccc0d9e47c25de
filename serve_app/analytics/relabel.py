"""Classify the past again with a taught head, from the embeddings in the prediction log; no photo is needed."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.errors import DatasetError
from serve_app.files import atomic_write
from serve_app.heads.taught import TaughtHead
from serve_app.prediction_log_format import ADDED_LATER, DAYS, EMBEDDING, ONCE, RAW, SCHEMA

ROWS = 4096  # per step: 512 numbers each
RELABELED = pa.schema(
    [
        ("time", pa.timestamp("us", "UTC")),
        ("request_id", pa.string()),
        ("image", pa.int32()),
        ("label_before", pa.string()),  # of the model
        ("label", pa.string()),  # of the head
        ("score", pa.float32()),
        ("none_of_these", pa.bool_()),
    ]
)


@dataclass
class Relabeled:
    """Counts of one run; ``serve-app relabel`` prints them as JSON."""

    rows: int = 0
    none_of_these: int = 0
    without_embedding: int = 0  # rows of errors, and of the time before `prediction_log.embeddings`
    other_weights: int = 0  # rows whose embedding the head cannot read


def relabel(log: Path, head: TaughtHead, since: datetime.datetime, out: Path) -> Relabeled:
    """Write what a head says about each logged image since a time, as Parquet; each image once.

    The log names weights by their version, so two weights of one version cannot be told apart.

    Raises:
        DatasetError: There is no prediction log in the folder.
        OSError: The file cannot be written.
    """
    files = [str(path) for folder in (RAW, DAYS) for path in sorted((log / folder).glob("*.parquet"))]
    if not files:
        raise DatasetError(f"{log} has no prediction log: there are no files in {RAW}/ or {DAYS}/")
    counts = Relabeled()
    with duckdb.connect() as db, atomic_write(out) as path, pq.ParquetWriter(path, RELABELED) as writer:
        rows = db.read_parquet(files, union_by_name=True)
        columns = (name if name in rows.columns else f"NULL::{ADDED_LATER[name]} AS {name}" for name in SCHEMA.names)
        rows.project(", ".join(columns)).create_view("log_rows")
        query = f"SELECT * FROM log_rows WHERE time >= ? {ONCE} ORDER BY time, request_id, image"
        for batch in db.sql(query, params=[since]).to_arrow_reader(ROWS):
            writer.write_table(pa.Table.from_pylist(_classify(batch.to_pylist(), head, counts), RELABELED))
    return counts


def _classify(rows: list[dict[str, Any]], head: TaughtHead, counts: Relabeled) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        if row[EMBEDDING] is None:
            counts.without_embedding += 1
            continue
        if row["version"] != head.backbone.version:
            counts.other_weights += 1
            continue
        said = head.classify(np.frombuffer(row[EMBEDDING], "<f2").astype(np.float32), 1)
        counts.rows += 1
        counts.none_of_these += said.none_of_these
        found.append(
            {name: row[name] for name in ("time", "request_id", "image")}
            | {"label_before": row["label"], "label": said.labels[0], "score": said.scores[0]}
            | {"none_of_these": said.none_of_these}
        )
    return found
