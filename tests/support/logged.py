"""A prediction log as a service would have written it, of any size, made by DuckDB in no time."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from serve_app.observability.prediction_log import RAW, SCHEMA

CLASSES = ("airplane", "bird", "boat", "car", "cat", "deer", "dog", "frog", "horse", "truck")


def log_day(
    folder: Path, day: date, images: int, *, doubled: str | None = None, blur: float = 0.0, version: str = "v1"
) -> None:
    """Write a raw file with the images of one day.

    Args:
        folder: Of the log.
        day: In UTC.
        images: How many, one in a hundred of them an error.
        doubled: Class that comes twice as often as the others.
        blur: Takes so much of the sharpness, which is 8 ± 2 else.
        version: Of the weights.
    """
    (folder / RAW).mkdir(parents=True, exist_ok=True)
    names = ", ".join(f"'{name}'" for name in (*CLASSES, *([doubled] if doubled else ())))
    day_us = f"epoch_us(TIMESTAMP '{day} 00:00:00')"
    path = folder / RAW / f"{day}-{version}.parquet"
    rows = duckdb.sql(f"""
            WITH n AS (SELECT range AS n, random() AS u, random() AS v, random() AS w, hash(range) % 100 = 0 AS bad
                       FROM range({images})),
            labeled AS (SELECT *, [{names}][1 + floor(u * {len(CLASSES) + bool(doubled)})::INT] AS name FROM n)
            SELECT
                make_timestamptz(({day_us} + n * 86400000000 // {images})::BIGINT) AS time,
                '{day}-{version}-' || n AS request_id, 0 AS image,
                CASE WHEN bad THEN 'invalid_image' ELSE 'ok' END AS status, 'main' AS variant,
                CASE WHEN bad THEN NULL ELSE '{version}' END AS version,
                CASE WHEN bad THEN NULL ELSE n % 10 END AS class_id,
                CASE WHEN bad THEN NULL ELSE name END AS label,
                CASE WHEN bad THEN NULL ELSE sqrt(v) END AS score,
                CASE WHEN bad THEN NULL ELSE (v * v) END AS margin,
                CASE WHEN bad THEN NULL ELSE (2 * (1 - v)) END AS entropy,
                'jpeg' AS format, 640 AS width, 480 AS height, (50000 + 100000 * w)::INT AS bytes,
                (100 + 20 * (u + v + w - 1.5)) AS brightness, (40 + 10 * v) AS contrast,
                ((8 + 4 * (w - 0.5)) * {1 - blur}) AS sharpness,
                4 AS decode_ms, (10 * w * w) AS queue_ms, 20 AS model_ms,
                (30 + 70 * w) AS total_ms, 1 + n % 8 AS batch_size
            FROM labeled
    """)
    pq.write_table(rows.to_arrow_table().cast(SCHEMA), path)
