"""How many jobs a caller may have open, and what a job costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.batch.job_store import JobStore
from serve_app.config import JobsConfig
from serve_app.errors import OverloadedError, RateLimitedError
from serve_app.http.schemas import Quota

RETRY_S = 60  # a job takes minutes
UPLOAD_RETRY_S = 10
MAX_UPLOADS = 4  # in flight at one ingress replica
MAX_UPLOADS_OF_A_KEY = 2


class UploadSlots:
    """Counts the uploads of jobs that are in flight at one ingress replica, of all callers and of each."""

    def __init__(self) -> None:
        self._by_caller: Counter[str | None] = Counter()

    @contextmanager
    def take(self, caller: str | None) -> Iterator[None]:
        """Count an upload inside the block; without API keys all uploads are one caller's.

        Raises:
            RateLimitedError: The API key has ``MAX_UPLOADS_OF_A_KEY`` uploads in flight (429).
            OverloadedError: All clients together have ``MAX_UPLOADS`` (503).
        """
        if caller is not None and self._by_caller[caller] >= MAX_UPLOADS_OF_A_KEY:
            raise RateLimitedError(
                f"{MAX_UPLOADS_OF_A_KEY} uploads of this API key are in flight already; retry later", UPLOAD_RETRY_S
            )
        if self._by_caller.total() >= MAX_UPLOADS:
            raise OverloadedError(f"{MAX_UPLOADS} uploads are in flight already; retry later", UPLOAD_RETRY_S)
        self._by_caller[caller] += 1
        try:
            yield
        finally:
            self._by_caller[caller] -= 1


def queue_quota(store: JobStore, caller: str | None, limits: JobsConfig) -> Quota:
    """Return how many jobs of a caller wait or run; without API keys all jobs are one caller's."""
    return _queue_quota(store.count_open_jobs(), caller, limits)


def check_queue(store: JobStore, caller: str | None, limits: JobsConfig) -> None:
    """Check that a caller may submit another job.

    Raises:
        RateLimitedError: The API key has too many jobs that wait or run (429).
        OverloadedError: All clients together have too many (503).
    """
    open_jobs = store.count_open_jobs()
    if not _queue_quota(open_jobs, caller, limits).remaining:
        error = OverloadedError if caller is None else RateLimitedError
        raise error(
            f"{limits.max_queued_jobs} of your jobs are queued already (limit: `jobs.max_queued_jobs`); retry later",
            RETRY_S,
        )
    if open_jobs.total() >= limits.max_total_queued_jobs:
        raise OverloadedError(
            f"{limits.max_total_queued_jobs} jobs are queued already (limit: `jobs.max_total_queued_jobs`); "
            "retry later",
            RETRY_S,
        )


def _queue_quota(open_jobs: Counter[str | None], caller: str | None, limits: JobsConfig) -> Quota:
    used = open_jobs.total() if caller is None else open_jobs[caller]
    limit = limits.max_queued_jobs
    return Quota(used=used, limit=limit, remaining=max(0, limit - used))
