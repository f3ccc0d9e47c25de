"""The Ray actor that runs batch jobs: one per folder of jobs, outside all Serve replicas, so it outlives them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME

from serve_app.batch.job_store import JobStore, open_store
from serve_app.batch.retention import delete_ended_jobs
from serve_app.batch.supervisor import Supervisor
from serve_app.config import JobsConfig

NAMESPACE = "serve_app"
RETRY_S = 60
log = logging.getLogger("serve_app")


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


class JobStarter:
    """Sweeps the folder of jobs and starts or wakes the actor, in the background, until that has worked.

    Neither a replica's settings nor an answer to a client waits for it: the folder may be on a network disk that hangs.

    Args:
        config: Returns the current settings; None if jobs are switched off.
        start: Makes one attempt.
        retry_s: Seconds between two attempts.
    """

    def __init__(
        self,
        config: Callable[[], JobsConfig | None],
        start: Callable[[JobsConfig], Awaitable[None]] | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        self._config, self._start, self._retry_s = config, start or start_jobs, retry_s
        self._due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Ask for an attempt now."""
        self._due.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._due.is_set():
            self._due.clear()
            config = self._config()
            if config is None:
                return
            try:
                await self._start(config)
            except Exception:  # such as a folder that cannot be written to, or a Ray that is restarting
                log.exception("jobs: cannot be started now; trying again within %.0f s", self._retry_s)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._due.wait(), self._retry_s)
                self._due.set()


async def start_jobs(config: JobsConfig) -> None:
    """Delete old jobs, and start or wake the actor if a job is open."""
    store = open_store(config.folder)
    try:
        await asyncio.to_thread(delete_ended_jobs, store, config)
    except OSError as error:  # old jobs can wait
        log.error("jobs: cannot be swept: %s", error)
    if await asyncio.to_thread(store.open_jobs):
        await asyncio.to_thread(_wake_actor, str(store.folder), config.workers)


def _wake_actor(folder: str, workers: int | None) -> None:
    actor: Any = ray.remote(JobActor).options(
        name=f"jobs-{hashlib.sha256(folder.encode()).hexdigest()[:16]}",
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        # On the head, as Serve's controller: without CPUs the actor keeps no worker from being removed as idle.
        resources={HEAD_NODE_RESOURCE_NAME: 0.001},
        max_restarts=-1,
        max_task_retries=-1,
    )
    ray.get(actor.remote(folder).wake.remote(workers))
