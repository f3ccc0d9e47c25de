"""Parts of results -> JSON, JSON lines, CSV or one Parquet file, part by part, however many there are."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.batch.results import SCHEMA, Output

Format = Literal["json", "jsonl", "csv", "parquet"]
Only = Literal["all", "ok", "failed"]
MEDIA_TYPES: dict[Format, str] = {
    "json": "application/json",
    "jsonl": "application/jsonl",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}


def stream(output: Output, kind: Format, only: Only, top_k: int) -> Iterator[bytes]:
    """Yield a file of all rows; one part is in memory at a time.

    Args:
        output: The folder of results.
        kind: Of the file.
        only: Which rows.
        top_k: Classes per image, for CSV's columns.
    """
    tables = (_rows(output.read(part), only) for part in output.parts())
    if kind == "parquet":
        return _parquet(tables)
    if kind == "csv":
        return _csv(tables, top_k)
    return _json_array(tables) if kind == "json" else _json_lines(tables)


def _rows(table: pa.Table, only: Only) -> pa.Table:
    if only == "all":
        return table
    failed = pc.is_valid(table["error"])
    return table.filter(failed if only == "failed" else pc.invert(failed))


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row in the words of /v1/classify."""
    if row["error"] is not None:
        return {"path": row["path"], "status": "error", "error": {"code": row["error"], "detail": row["detail"]}}
    predictions = zip(row["labels"], row["scores"], row["class_ids"], strict=True)
    return {
        "path": row["path"],
        "status": "ok",
        "predictions": [{"label": label, "score": score, "class_id": n} for label, score, n in predictions],
        "uncertainty": {"margin": row["margin"], "entropy": row["entropy"]},
        "version": row["version"],
    }


def _json_lines(tables: Iterator[pa.Table]) -> Iterator[bytes]:
    for table in tables:
        yield "".join(json.dumps(as_json(row)) + "\n" for row in table.to_pylist()).encode()


def _json_array(tables: Iterator[pa.Table]) -> Iterator[bytes]:
    before = "[\n"
    for table in tables:
        for row in table.to_pylist():
            yield (before + json.dumps(as_json(row))).encode()
            before = ",\n"
    yield b"\n]\n" if before != "[\n" else b"[]\n"


def _csv(tables: Iterator[pa.Table], top_k: int) -> Iterator[bytes]:
    pairs = [f"{what}_{n}" for n in range(1, top_k + 1) for what in ("label", "score")]
    yield _csv_lines([["path", *pairs, "margin", "entropy", "error", "detail", "version"]])
    for table in tables:
        yield _csv_lines([_csv_row(row, len(pairs)) for row in table.to_pylist()])


def _csv_row(row: dict[str, Any], width: int) -> list[Any]:
    found = zip(row["labels"] or (), row["scores"] or (), strict=True)
    flat = [value for label, score in found for value in (label, f"{score:.7g}")]
    padding = [None] * (width - len(flat))
    return [row["path"], *flat, *padding, row["margin"], row["entropy"], row["error"], row["detail"], row["version"]]


def _csv_lines(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _parquet(tables: Iterator[pa.Table]) -> Iterator[bytes]:
    sink = _Pieces()
    with pq.ParquetWriter(pa.PythonFile(sink, "w"), SCHEMA, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(SCHEMA))
            yield sink.take()
    yield sink.take()


class _Pieces(io.RawIOBase):
    """A file that is taken away as it is written."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._written = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written

    def write(self, data: Any) -> int:
        self._waiting += data
        self._written += len(data)
        return len(data)

    def take(self) -> bytes:
        found = bytes(self._waiting)
        self._waiting.clear()
        return found
