"""Who works off the folder of jobs on a Ray cluster: one actor that outlives every replica."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import ray

from serve_app.batch.job_store import Store, open_store
from serve_app.batch.supervisor import Supervisor
from serve_app.config import JobsConfig

NAMESPACE = "serve_app"


class Jobs:
    """The actor. Where it dies, Ray starts it again, and it goes on with what is in the folder."""

    def __init__(self, folder: str) -> None:
        """Look for jobs that have not ended."""
        address = ray.get_runtime_context().gcs_address
        self._supervisor = Supervisor(Store(Path(folder)), address, None)

    def wake(self, workers: int | None) -> None:
        """There may be something to do; with so many workers."""
        self._supervisor.workers = workers
        self._supervisor.wake()


async def start_jobs(tuning: JobsConfig) -> None:
    """Have what is in the folder done, if there is something, and forget what is old."""
    store = open_store(tuning.folder)
    await asyncio.to_thread(store.sweep, tuning.keep_days)
    if not await asyncio.to_thread(store.open_jobs):
        return
    await asyncio.to_thread(_wake, store, tuning)


def _wake(store: Store, tuning: JobsConfig) -> None:
    folder = str(store.folder)
    actor: Any = ray.remote(Jobs).options(
        name=f"jobs-{hashlib.sha256(folder.encode()).hexdigest()[:16]}",
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
    )
    ray.get(actor.remote(folder).wake.remote(tuning.workers))
