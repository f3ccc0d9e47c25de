"""Stage 1/3 · one row per image answered, as Parquet, off the request's path. No pixels, no file names.

Rows wait in memory and a thread writes them, every ``flush_s`` or every ``rows_per_file`` of them. A process that is
killed loses those that wait: at most ``flush_s`` of traffic and what is just being written. One that stops
writes all. When the writer cannot keep up, or has nowhere to write, rows over ``max_buffered_rows`` are dropped and
counted: a request never waits for its row.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from serve_app.config import PredictionLogConfig
from serve_app.errors import ServiceError
from serve_app.files import atomic_write
from serve_app.http.service import Answer, Asked

RAW = "raw"  # folder below the log's own
SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", "UTC")),
        ("request_id", pa.string()),
        ("image", pa.int32()),  # its index in the request
        ("status", pa.string()),  # ok, or the error's code
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
    ]
)
log = logging.getLogger("serve_app")


class PredictionLog:
    """Where rows go while one set of values holds; ``close`` it before the next takes over.

    Attributes:
        dropped: Rows that were not kept.
        written: Rows that are in files.
    """

    def __init__(
        self, tuning: PredictionLogConfig, tell: Callable[[dict[str, int]], None] = lambda counts: None
    ) -> None:
        """Start the writer.

        Args:
            tuning: Where, how often and how much.
            tell: Called with the snapshot each time the writer has been at work.

        Raises:
            ValueError: The folder cannot be written to.
        """
        self._tuning, self._tell = tuning, tell
        self._rows: deque[tuple[Any, ...]] = deque()
        self._wake, self._closing = threading.Event(), False
        self._writer = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        self._files = self.written = self.dropped = 0
        self._fs, self._folder = _open(tuning.folder)
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)
        self._thread.start()

    def answered(self, asked: Asked, answer: Answer) -> None:
        """Add the row of an image that got its classes."""
        found, best = answer.classification, answer.classification.class_ids[0]
        times, look = answer.timings_ms, answer.look or (None, None, None)
        self._add(
            asked,
            "ok",
            (
                answer.model.version,
                best,
                answer.labels[best],
                found.scores[0],
                found.margin,
                found.entropy,
                answer.image.format,
                answer.image.width,
                answer.image.height,
                asked.bytes,
                *look,
                times["decode"],
                times["queue"],
                times["model"],
            ),
            answer.batch_size,
        )

    def failed(self, asked: Asked, error: ServiceError) -> None:
        """Add the row of an image that got an error."""
        nothing = (None,) * 9
        self._add(asked, error.code, (*nothing, asked.bytes, *(None,) * 6), None)

    def close(self) -> None:
        """Write what waits, and stop."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def snapshot(self) -> dict[str, int]:
        """For the status page."""
        return {"written": self.written, "waiting": len(self._rows), "dropped": self.dropped}

    def _add(self, asked: Asked, status: str, middle: tuple[Any, ...], batch_size: int | None) -> None:
        if len(self._rows) >= self._tuning.max_buffered_rows:
            self.dropped += 1
            return
        total_ms = (time.perf_counter() - asked.start) * 1000
        now = time.time_ns() // 1000
        self._rows.append((now, asked.request_id, asked.image, status, asked.variant, *middle, total_ms, batch_size))
        if len(self._rows) % self._tuning.rows_per_file == 0:
            self._wake.set()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._tuning.flush_s)
            self._wake.clear()
            self._flush()
            self._tell(self.snapshot())
        self._flush()
        self.dropped += len(self._rows)

    def _flush(self) -> None:
        """Write what is there now, a file at a time; what cannot be written waits for the next time."""
        for _ in range(math.ceil(len(self._rows) / self._tuning.rows_per_file)):
            if not self._write():
                return

    def _write(self) -> bool:
        """Write a file of the oldest rows; they stay if it fails."""
        rows = [self._rows[i] for i in range(min(len(self._rows), self._tuning.rows_per_file))]
        try:
            write_rows(self._fs, f"{self._folder}/{RAW}/{self._writer}-{self._files:06d}.parquet", rows)
        except OSError as error:
            log.error("prediction log: %d rows wait, they cannot be written (%s)", len(self._rows), error)
            return False
        for _ in rows:
            self._rows.popleft()
        self._files += 1
        self.written += len(rows)
        return True


def write_rows(filesystem: fs.FileSystem, path: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Write rows as one Parquet file that is there whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, each.type) for column, each in zip(columns, SCHEMA, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    if not isinstance(filesystem, fs.LocalFileSystem):  # an object appears when it is complete
        pq.write_table(table, path, filesystem=filesystem)
        return
    with atomic_write(Path(path)) as unfinished:
        pq.write_table(table, unfinished)


def _open(folder: str) -> tuple[fs.FileSystem, str]:
    try:
        found, path = fs.FileSystem.from_uri(folder) if "://" in folder else (fs.LocalFileSystem(), folder)
        found.create_dir(f"{path}/{RAW}", recursive=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"log.folder {folder}: cannot be written to ({error})") from None
    return found, path.rstrip("/")
