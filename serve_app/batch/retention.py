"""Which ended jobs are deleted: the old ones, and the oldest if there are too many or if they are too large."""

from __future__ import annotations

import time
from bisect import bisect_right
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from serve_app.batch.job_records import ID, OUTCOMES
from serve_app.batch.job_store import JobStore
from serve_app.config import JobsConfig
from serve_app.files import folder_bytes

DAY_S = 86400
JOBS_IN_MEMORY = 10_000


def delete_ended_jobs(store: JobStore, config: JobsConfig) -> None:
    """Delete jobs that ended more than ``keep_days`` ago, and the oldest above ``max_ended_jobs`` or ``max_bytes``.

    The job that ended last stays, whatever its size.
    """
    ended = sorted(_end_times(store), reverse=True)
    bytes_of_newest = list(accumulate(_bytes(folder, end_time) for end_time, folder in ended))
    kept = min(config.max_ended_jobs, max(1, bisect_right(bytes_of_newest, config.max_bytes)))
    keep_days = config.keep_days
    if len(ended) > kept:
        (oldest_kept, _), (newest_deleted, _) = ended[kept - 1 : kept + 1]
        keep_days = min(keep_days, (time.time() - (oldest_kept + newest_deleted) / 2) / DAY_S)
    store.sweep(keep_days)


@lru_cache(JOBS_IN_MEMORY)
def _bytes(folder: Path, end_time: float) -> int:
    """Return the bytes of an ended job, which no longer change; counting its parts takes long on a network disk."""
    return folder_bytes(folder)


def _end_times(store: JobStore) -> list[tuple[float, Path]]:
    times = []
    for folder in store.folder.glob("*"):
        if ID.fullmatch(folder.name):
            ended = []
            for name in OUTCOMES.values():
                with suppress(FileNotFoundError):  # not this outcome, or deleted by another process
                    ended.append((folder / name).stat().st_mtime)
            times += [(min(ended), folder)] if ended else []
    return times
