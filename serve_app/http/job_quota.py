"""How many jobs a caller may have open, and what a job costs."""

from __future__ import annotations

import zipfile
from pathlib import Path

from serve_app.batch.job_store import JobStore
from serve_app.config import JobsConfig
from serve_app.errors import OverloadedError, RateLimitedError
from serve_app.http.schemas import Quota

RETRY_S = 60  # a job takes minutes
OPEN = ("queued", "running")


def queue_quota(store: JobStore, caller: str | None, limits: JobsConfig) -> Quota:
    """Return how many jobs of a caller wait or run; without API keys all jobs are one caller's."""
    used = sum(state.status in OPEN for state in store.jobs(caller))
    limit = limits.max_queued_jobs
    return Quota(used=used, limit=limit, remaining=max(0, limit - used))


def check_queue(store: JobStore, caller: str | None, limits: JobsConfig) -> None:
    """Check that a caller may submit another job.

    Raises:
        RateLimitedError: The API key has too many jobs that wait or run (429).
        OverloadedError: All clients together have too many (503).
    """
    if not queue_quota(store, caller, limits).remaining:
        error = OverloadedError if caller is None else RateLimitedError
        raise error(
            f"{limits.max_queued_jobs} of your jobs are queued already (limit: `jobs.max_queued_jobs`); retry later",
            RETRY_S,
        )
    if len(store.open_jobs()) >= limits.max_total_queued_jobs:
        raise OverloadedError(
            f"{limits.max_total_queued_jobs} jobs are queued already (limit: `jobs.max_total_queued_jobs`); "
            "retry later",
            RETRY_S,
        )


def count_files(path: Path) -> int:
    """Return the number of files in a zip that has been checked."""
    with zipfile.ZipFile(path) as archive:
        return sum(not entry.is_dir() for entry in archive.infolist())
