"""Which ended jobs are deleted: the old ones, and the oldest if there are too many."""

from __future__ import annotations

import time
from contextlib import suppress

from serve_app.batch.job_records import ID, OUTCOMES
from serve_app.batch.job_store import JobStore
from serve_app.config import JobsConfig

DAY_S = 86400


def delete_ended_jobs(store: JobStore, config: JobsConfig) -> None:
    """Delete jobs that ended more than ``keep_days`` ago, and the oldest above ``max_ended_jobs``."""
    ended = sorted(_end_times(store), reverse=True)
    keep_days = config.keep_days
    if len(ended) > config.max_ended_jobs:
        oldest_kept, newest_deleted = ended[config.max_ended_jobs - 1 : config.max_ended_jobs + 1]
        keep_days = min(keep_days, (time.time() - (oldest_kept + newest_deleted) / 2) / DAY_S)
    store.sweep(keep_days)


def _end_times(store: JobStore) -> list[float]:
    times = []
    for folder in store.folder.glob("*"):
        if ID.fullmatch(folder.name):
            ended = []
            for name in OUTCOMES.values():
                with suppress(FileNotFoundError):  # not this outcome, or deleted by another process
                    ended.append((folder / name).stat().st_mtime)
            times += [min(ended)] if ended else []
    return times
