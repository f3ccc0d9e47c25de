"""Stream results as JSON, JSON lines, CSV or one Parquet file, with one part in memory at a time."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.batch.results import ResultsFolder, schema
from serve_app.csv_text import csv_line

Format = Literal["json", "jsonl", "csv", "parquet"]
RowFilter = Literal["all", "ok", "failed"]
MEDIA_TYPES: dict[Format, str] = {
    "json": "application/json",
    "jsonl": "application/jsonl",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}


def stream(
    results: ResultsFolder,
    format: Format,
    only: RowFilter,
    top_k: int,
    is_complete: bool = False,
    embed: bool = False,
    head: bool = False,
) -> Iterator[bytes]:
    """Yield the bytes of one file with the rows of all parts; ``top_k`` decides the columns of a CSV.

    ``only`` selects all rows, those of classified images (``ok``) or those with an error (``failed``). If the results
    are complete (``is_complete``), the images of a part that is lost have rows with an error. With ``embed`` the
    results have embeddings, and with ``head`` the column ``none_of_these``; a CSV has neither, because spreadsheets
    have no use for 512 more columns.
    """
    tables = (_filter(table, only) for table in results.tables(is_complete))
    if format == "parquet":
        return _parquet(tables, schema(embed, head))
    if format == "csv":
        return _csv(tables, top_k)
    return _json_array(tables) if format == "json" else _json_lines(tables)


def _filter(table: pa.Table, only: RowFilter) -> pa.Table:
    if only == "all":
        return table
    failed = pc.is_valid(table["error"])
    return table.filter(failed if only == "failed" else pc.invert(failed))


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the field names of /v1/classify."""
    if row["error"] is not None:
        return {"path": row["path"], "status": "error", "error": {"code": row["error"], "detail": row["detail"]}}
    predictions = zip(row["labels"], row["scores"], row["class_ids"], strict=True)
    return {
        "path": row["path"],
        "status": "ok",
        "predictions": [{"label": label, "score": score, "class_id": n} for label, score, n in predictions],
        "uncertainty": {"margin": row["margin"], "entropy": row["entropy"]},
        "version": row["version"],
        **({"none_of_these": row["none_of_these"]} if "none_of_these" in row else {}),
        **({"embedding": row["embedding"]} if "embedding" in row else {}),
    }


def _json_lines(tables: Iterator[pa.Table]) -> Iterator[bytes]:
    for table in tables:
        yield "".join(json.dumps(_as_json(row)) + "\n" for row in table.to_pylist()).encode()


def _json_array(tables: Iterator[pa.Table]) -> Iterator[bytes]:
    separator = "[\n"
    for table in tables:
        for row in table.to_pylist():
            yield (separator + json.dumps(_as_json(row))).encode()
            separator = ",\n"
    yield b"\n]\n" if separator != "[\n" else b"[]\n"


def _csv(tables: Iterator[pa.Table], top_k: int) -> Iterator[bytes]:
    columns = [f"{name}_{n}" for n in range(1, top_k + 1) for name in ("label", "score")]
    yield csv_line(["path", *columns, "margin", "entropy", "error", "detail", "version"]).encode()
    for table in tables:
        yield "".join(csv_line(_csv_row(row, len(columns))) for row in table.to_pylist()).encode()


def _csv_row(row: dict[str, Any], width: int) -> list[Any]:
    pairs = zip(row["labels"] or (), row["scores"] or (), strict=True)
    values = [value for label, score in pairs for value in (label, float(f"{score:.7g}"))]
    padding = [None] * (width - len(values))
    return [row["path"], *values, *padding, row["margin"], row["entropy"], row["error"], row["detail"], row["version"]]


def _parquet(tables: Iterator[pa.Table], columns: pa.Schema) -> Iterator[bytes]:
    buffer = _DrainedBuffer()
    with pq.ParquetWriter(pa.PythonFile(buffer, "w"), columns, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(columns))
            yield buffer.drain()
    yield buffer.drain()


class _DrainedBuffer(io.BytesIO):
    """A write-only file whose bytes are taken out while it is written; ``tell`` counts all of them."""

    _drained = 0

    def tell(self) -> int:
        return self._drained + super().tell()

    def drain(self) -> bytes:
        drained = self.getvalue()
        self._drained += len(drained)
        self.seek(0)
        self.truncate()
        return drained
