"""The prediction log: one Parquet row per image, without pixels or file names.

Rows are buffered in memory. A thread writes them every ``flush_s`` seconds, or as soon as there are ``rows_per_file``.
No request waits for its row. A killed process loses the buffered rows: at most ``flush_s`` of traffic and the file in
progress. A process that stops writes all rows. When the writer falls behind, or its folder is not writable, rows over
``max_buffered_rows`` are dropped and counted; rows are dropped too while the folder holds ``max_bytes``. No error ends
the thread, and neither a full disk nor a folder that cannot be created stops the service.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from serve_app.config import PredictionLogConfig
from serve_app.errors import ServiceError
from serve_app.files import atomic_write, folder_bytes
from serve_app.messages import ClassifyRequest, ClassifyResult, Outcome
from serve_app.paths import data_path
from serve_app.prediction_log_format import RAW, SCHEMA

ROOM_CHECK_S = 60  # between two counts of the folder's bytes
VALUE_ERRORS = (ValueError, TypeError, OverflowError)  # a value does not fit its column; ArrowInvalid is a ValueError
log = logging.getLogger("serve_app")


class PredictionLog:
    """Collects and writes rows under one set of settings.

    Args:
        config: Folder, interval and sizes.
        on_flush: Called in the writer thread with the counts of ``snapshot`` after each flush.

    Attributes:
        keeps_embeddings: Whether rows hold the embeddings of their images.
        written: Rows in files.
        dropped: Rows that are lost.
        error: Why the last flush wrote nothing, without the folder's path; None if it wrote.

    Raises:
        ValueError: The folder is a URI that cannot be opened.
    """

    def __init__(
        self, config: PredictionLogConfig, on_flush: Callable[[dict[str, int]], None] = lambda counts: None
    ) -> None:
        self._config, self._on_flush, self.keeps_embeddings = config, on_flush, config.embeddings
        self._rows: deque[tuple[Any, ...]] = deque()
        self._wake, self._closing = threading.Event(), False
        self._writer = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        self._files = self.written = self.dropped = 0
        self.error: str | None = None
        self._fs, self._folder = _open(config.folder)
        # A bucket has no folders. To create one, pyarrow would need more rights than to write objects.
        self._has_folder = not isinstance(self._fs, fs.LocalFileSystem)
        self._is_full, self._checked_s = False, -math.inf
        self._flush()  # there are no rows yet; a folder that cannot be created is logged now
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)
        self._thread.start()

    def add(
        self,
        request: ClassifyRequest[bytes],
        variant: str,
        outcome: Outcome,
        total_ms: float,
        heads: Mapping[str, str] | None = None,
    ) -> None:
        """Add the row of one image.

        Args:
            request: The image.
            variant: That classified it.
            outcome: Its result or error.
            total_ms: Time from the decoded upload to the outcome.
            heads: Version of each taught head of the request, by its name.
        """
        if request.context is None:
            return
        if len(self._rows) >= self._config.max_buffered_rows:
            self.dropped += 1
            return
        now_us = time.time_ns() // 1000
        context = request.context
        start = (now_us, context.request_uuid, context.request_id, context.index)
        size = len(request.image)
        named = (",".join(heads), ",".join(heads.values())) if heads else (None, None)
        if isinstance(outcome, ServiceError):
            row = (*start, outcome.code, variant, *(None,) * 9, size, *(None,) * 6, total_ms, None, *named, None)
        else:
            embedding = outcome.embedding if self.keeps_embeddings else None
            packed = None if embedding is None else embedding.astype("<f2").tobytes()
            row = (*start, "ok", variant, *_columns(outcome, size), total_ms, outcome.batch_size, *named, packed)
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
        if self._has_folder and not self._rows:
            return
        error = None
        try:
            if not self._has_folder:  # once: a folder that vanishes later was on a disk that is gone
                self._fs.create_dir(f"{self._folder}/{RAW}", recursive=True)
                self._has_folder = True
            if self._rows and not self._has_room():
                error = f"the folder is full (limit: `prediction_log.max_bytes` = {self._config.max_bytes})"
                while self._rows:
                    self._rows.popleft()
                    self.dropped += 1
            else:
                for _ in range(math.ceil(len(self._rows) / self._config.rows_per_file)):
                    self._write_file([self._rows[i] for i in range(min(len(self._rows), self._config.rows_per_file))])
        except OSError as caught:
            error = os.strerror(caught.errno) if caught.errno else type(caught).__name__
        except Exception as caught:
            log.exception("prediction log: cannot write")
            error = type(caught).__name__
        if error and error != self.error:
            log.error("prediction log %s: %s; %d rows stay buffered", self._folder, error, len(self._rows))
        self.error = error

    def _has_room(self) -> bool:
        """Return whether the folder holds less than ``max_bytes``; count it every ``ROOM_CHECK_S``.

        The ETL deletes old rows long before that, unless it fails each time. A bucket is not counted.
        """
        if isinstance(self._fs, fs.LocalFileSystem) and time.monotonic() - self._checked_s > ROOM_CHECK_S:
            self._is_full = folder_bytes(Path(self._folder)) >= self._config.max_bytes
            self._checked_s = time.monotonic()
        return not self._is_full

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
    folder = data_path(folder)
    if "://" not in folder:
        return fs.LocalFileSystem(), folder
    try:
        filesystem, path = fs.FileSystem.from_uri(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"prediction_log.folder {folder}: cannot be opened ({error})") from None
    return filesystem, path.rstrip("/")
