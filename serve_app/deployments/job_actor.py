"""The Ray actor that runs batch jobs: one per folder of jobs, outside all Serve replicas, so it outlives them."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import ray

from serve_app.batch.job_store import JobStore, open_store
from serve_app.batch.retention import delete_ended_jobs
from serve_app.batch.supervisor import Supervisor
from serve_app.config import JobsConfig

NAMESPACE = "serve_app"


class JobActor:
    """Runs the open jobs of a folder. Ray restarts the actor when it dies; it goes on from the folder's state."""

    def __init__(self, folder: str) -> None:
        address = ray.get_runtime_context().gcs_address
        self._supervisor = Supervisor(JobStore(Path(folder)), address)
        self._supervisor.start()

    def wake(self, workers: int | None) -> None:
        """Find open jobs now, and run them with this many workers (None: one per CPU)."""
        self._supervisor.workers = workers
        self._supervisor.wake()


async def start_jobs(config: JobsConfig) -> None:
    """Delete old jobs, and start or wake the actor if a job is open."""
    store = open_store(config.folder)
    await asyncio.to_thread(delete_ended_jobs, store, config)
    if await asyncio.to_thread(store.open_jobs):
        await asyncio.to_thread(_wake_actor, str(store.folder), config.workers)


def _wake_actor(folder: str, workers: int | None) -> None:
    actor: Any = ray.remote(JobActor).options(
        name=f"jobs-{hashlib.sha256(folder.encode()).hexdigest()[:16]}",
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
    )
    ray.get(actor.remote(folder).wake.remote(workers))
