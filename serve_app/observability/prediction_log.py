"""The prediction log: one Parquet row per image, without pixels or file names.

Rows are buffered in memory. A thread writes them every ``flush_s`` seconds, or as soon as there are ``rows_per_file``.
No request waits for its row. A killed process loses the buffered rows: at most ``flush_s`` of traffic and the file in
progress. A process that stops writes all rows. When the writer falls behind, or its folder is not writable, rows over
``max_buffered_rows`` are dropped and counted. No error ends the thread.
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
from serve_app.messages import ClassifyRequest, ClassifyResult, Outcome

RAW = "raw"  # subfolder of the log's folder
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
    ]
)
VALUE_ERRORS = (ValueError, TypeError, OverflowError)  # a value does not fit its column; ArrowInvalid is a ValueError
log = logging.getLogger("serve_app")


class PredictionLog:
    """Collects and writes rows under one set of settings.

    Args:
        config: Folder, interval and sizes.
        on_flush: Called in the writer thread with the counts of ``snapshot`` after each flush.

    Raises:
        ValueError: The folder is not writable.
    """

    def __init__(
        self, config: PredictionLogConfig, on_flush: Callable[[dict[str, int]], None] = lambda counts: None
    ) -> None:
        self._config, self._on_flush = config, on_flush
        self._rows: deque[tuple[Any, ...]] = deque()
        self._wake, self._closing = threading.Event(), False
        self._writer = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        self._files = self.written = self.dropped = 0
        self._fs, self._folder = _open(config.folder)
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)
        self._thread.start()

    def add(self, request: ClassifyRequest[bytes], variant: str, outcome: Outcome, total_ms: float) -> None:
        """Add the row of one image; ``total_ms`` is the time from the decoded upload to the outcome."""
        if request.context is None:
            return
        if len(self._rows) >= self._config.max_buffered_rows:
            self.dropped += 1
            return
        now_us = time.time_ns() // 1000
        context = request.context
        start = (now_us, context.request_uuid, context.request_id, context.index)
        size = len(request.image)
        if isinstance(outcome, ServiceError):
            row = (*start, outcome.code, variant, *(None,) * 9, size, *(None,) * 6, total_ms, None)
        else:
            row = (*start, "ok", variant, *_columns(outcome, size), total_ms, outcome.batch_size)
        self._rows.append(row)
        if len(self._rows) % self._config.rows_per_file == 0:
            self._wake.set()

    def close(self) -> None:
        """Write the buffered rows and end the thread."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def snapshot(self) -> dict[str, int]:
        """Return how many rows were written, are buffered and were dropped."""
        return {"written": self.written, "buffered": len(self._rows), "dropped": self.dropped}

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._config.flush_s)
            self._wake.clear()
            self._flush()
            try:
                self._on_flush(self.snapshot())
            except Exception:
                log.exception("prediction log: its counts cannot be reported")
        self._flush()
        self.dropped += len(self._rows)

    def _flush(self) -> None:
        """Write the rows that are buffered now, one file at a time; after an error they stay buffered.

        An error of any type ends this flush and not the thread: without the thread all later rows would be dropped.
        """
        try:
            for _ in range(math.ceil(len(self._rows) / self._config.rows_per_file)):
                self._write_file([self._rows[i] for i in range(min(len(self._rows), self._config.rows_per_file))])
        except OSError as error:
            log.error("prediction log: cannot write, %d rows stay buffered (%s)", len(self._rows), error)
        except Exception:
            log.exception("prediction log: cannot write, %d rows stay buffered", len(self._rows))

    def _write_file(self, rows: list[tuple[Any, ...]]) -> None:
        """Write the oldest rows to one file and remove them from the buffer.

        A row that the schema cannot hold is dropped and counted. It would keep all later rows in the buffer.
        """
        path, valid = f"{self._folder}/{RAW}/{self._writer}-{self._files:06d}.parquet", rows
        try:
            write_rows(self._fs, path, rows)
        except VALUE_ERRORS as error:
            log.error("prediction log: rows that the schema cannot hold are dropped (%s)", error)
            valid = [row for row in rows if _fits(row)]
            if valid:
                write_rows(self._fs, path, valid)
        for _ in rows:
            self._rows.popleft()
        self._files += 1
        self.written += len(valid)
        self.dropped += len(rows) - len(valid)


def write_rows(filesystem: fs.FileSystem, path: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Write rows as one Parquet file with checksums; readers see the complete file or none."""
    table = _table(rows)
    if not isinstance(filesystem, fs.LocalFileSystem):  # an object in a bucket appears when it is complete
        pq.write_table(table, path, filesystem=filesystem, write_page_checksum=True)
        return
    with atomic_write(Path(path)) as unfinished:
        pq.write_table(table, unfinished, write_page_checksum=True)


def _table(rows: Iterable[tuple[Any, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, each.type) for column, each in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _fits(row: tuple[Any, ...]) -> bool:
    try:
        _table([row])
    except VALUE_ERRORS:
        return False
    return True


def _columns(result: ClassifyResult, size: int) -> tuple[Any, ...]:
    """Return the columns from ``version`` to ``model_ms``."""
    image, times = result.image, result.timings_ms
    return (
        result.model.version,
        result.class_ids[0],
        result.labels[0],
        result.scores[0],
        result.margin,
        result.entropy,
        *((image.format, image.width, image.height) if image else (None,) * 3),
        size,
        *(result.image_stats or (None,) * 3),
        *(times.get(phase) for phase in ("decode", "queue", "model")),
    )


def _open(folder: str) -> tuple[fs.FileSystem, str]:
    try:
        found, path = fs.FileSystem.from_uri(folder) if "://" in folder else (fs.LocalFileSystem(), folder)
        found.create_dir(f"{path}/{RAW}", recursive=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"prediction_log.folder {folder}: not writable ({error})") from None
    return found, path.rstrip("/")
