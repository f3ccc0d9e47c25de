"""The files of the prediction log: folders, columns of a row, and the SQL that summarizes rows.

    raw/         files of the service; the ETL deletes them once their rows are in days/
    days/        one file per day (UTC), each row once, sorted by time
    summary/     counts per hour, one folder per table; the Analytics page draws from them
    rejected/    what the ETL could not read

Three programs share this format: the service writes ``raw/``, the ETL writes the others, the Analytics page reads.
"""

from __future__ import annotations

import pyarrow as pa

RAW, DAYS, SUMMARY, REJECTED = "raw", "days", "summary", "rejected"
EMBEDDING = "embedding"
SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", "UTC")),
        ("request_uuid", pa.string()),  # the server's own id of the request; with ``image`` it is the row's key
        ("request_id", pa.string()),  # the client's X-Request-ID, which need not be unique, or else the server's
        ("image", pa.int32()),  # index in the request
        ("status", pa.string()),  # ok, or the code of the error
        ("variant", pa.string()),
        ("version", pa.string()),
        ("class_id", pa.int32()),
        ("label", pa.string()),
        ("score", pa.float32()),
        ("margin", pa.float32()),
        ("entropy", pa.float32()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int32()),
        ("brightness", pa.float32()),
        ("contrast", pa.float32()),
        ("sharpness", pa.float32()),
        ("decode_ms", pa.float32()),
        ("queue_ms", pa.float32()),
        ("model_ms", pa.float32()),
        ("total_ms", pa.float32()),
        ("batch_size", pa.int32()),
        ("head", pa.string()),  # names of the taught heads of the request, with commas between them
        ("head_version", pa.string()),  # their versions, in the same order
        (
            EMBEDDING,
            pa.binary(),
        ),  # 512 little-endian float16, with ``prediction_log.embeddings``; DuckDB has no float16
    ]
)
# Columns that files of older versions lack, in SQL.
ADDED_LATER = {"request_uuid": "VARCHAR", "head": "VARCHAR", "head_version": "VARCHAR", EMBEDDING: "BLOB"}
# Rows without ``request_uuid`` are told apart by the request id and the time.
KEY = ("request_uuid", "request_id", "image", "time")
COMPLETE = "time IS NOT NULL AND request_id IS NOT NULL AND image IS NOT NULL AND status IS NOT NULL"
ONCE = f"QUALIFY row_number() OVER (PARTITION BY {', '.join(KEY)}) = 1"
# Histogram bins that add up over hours and days: SQL for the lower and upper end of the bin that holds x.
BIN_GROWTH, BIN_FLOOR = 1.1, 0.01
LOG_BIN = f"floor(ln(greatest(x, {BIN_FLOOR}) / {BIN_FLOOR}) / ln({BIN_GROWTH}))"
LOG_ENDS = f"{BIN_FLOOR} * {BIN_GROWTH} ** {LOG_BIN}", f"{BIN_FLOOR} * {BIN_GROWTH} ** ({LOG_BIN} + 1)"


def _linear_ends(width: float) -> tuple[str, str]:
    return f"floor(x / {width}) * {width}", f"(floor(x / {width}) + 1) * {width}"


BINS = {
    **dict.fromkeys(("decode_ms", "queue_ms", "model_ms", "total_ms", "sharpness", "bytes"), LOG_ENDS),
    **dict.fromkeys(("score", "margin"), _linear_ends(0.02)),
    "entropy": _linear_ends(0.1),
    **dict.fromkeys(("brightness", "contrast"), _linear_ends(4)),
    "batch_size": _linear_ends(1),
}
HOUR = "date_trunc('hour', time) AS hour, variant, version"


def summary_queries(rows: str) -> dict[str, str]:
    """Return the query of each summary table over a relation of rows, each of which counts once."""
    histograms = " UNION ALL ".join(
        f"SELECT {HOUR}, '{name}' AS metric, {low} AS low, {high} AS high, count(*) AS images "
        f"FROM (SELECT *, {name}::DOUBLE AS x FROM {rows} WHERE isfinite({name}::DOUBLE)) GROUP BY ALL"
        for name, (low, high) in BINS.items()
    )
    return {
        "hours": f"SELECT {HOUR}, status, count(*) AS images, sum(bytes) AS bytes FROM {rows} GROUP BY ALL",
        "classes": f"SELECT {HOUR}, label, count(*) AS images, sum(score) FILTER (isfinite(score)) AS score_sum "
        f"FROM {rows} WHERE label IS NOT NULL GROUP BY ALL",
        "histograms": histograms,
    }


TABLES = tuple(summary_queries(""))
