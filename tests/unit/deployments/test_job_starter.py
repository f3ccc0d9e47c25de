"""Work on jobs is started in the background, until that has worked; it never fails what asked for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from serve_app.batch.job_store import JobStore
from serve_app.config import JobsConfig
from serve_app.deployments import job_actor
from serve_app.deployments.job_actor import RETRY_S, JobStarter, start_jobs
from tests.support.clock import in_virtual_time
from tests.support.jobs import submit_job

CONFIG = JobsConfig(folder="jobs")


class Attempts:
    """Records attempts to start, with their time; the first ``failing`` ones raise ``error``."""

    def __init__(self, failing: int = 0, error: Exception | None = None, takes_s: float = 0) -> None:
        self.times: list[float] = []
        self._failing, self._error, self._takes_s = failing, error or RuntimeError("no Ray"), takes_s

    async def __call__(self, config: JobsConfig) -> None:
        self.times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self._takes_s)
        if len(self.times) <= self._failing:
            raise self._error


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), RuntimeError("no Ray"), ValueError("bug")])
def test_failed_start_is_tried_again(error: Exception) -> None:
    """An attempt a minute until one works; none afterwards."""

    @in_virtual_time
    async def run() -> None:
        attempts = Attempts(2, error)
        JobStarter(lambda: CONFIG, attempts).start()
        await asyncio.sleep(100 * RETRY_S)
        assert attempts.times == [0, RETRY_S, 2 * RETRY_S]

    run()


@in_virtual_time
async def test_new_job_does_not_wait_for_the_retry() -> None:
    """Someone submits a job: an attempt is made at once."""
    attempts = Attempts(1)
    starter = JobStarter(lambda: CONFIG, attempts)
    starter.start()
    await asyncio.sleep(5)
    starter.start()
    await asyncio.sleep(100 * RETRY_S)
    assert attempts.times == [0, 5]


@in_virtual_time
async def test_job_that_comes_during_an_attempt_gets_its_own() -> None:
    """The attempt in progress may have looked into the folder before the job was there."""
    attempts = Attempts(takes_s=10)
    starter = JobStarter(lambda: CONFIG, attempts)
    for _ in range(3):
        starter.start()
        await asyncio.sleep(1)
    await asyncio.sleep(100)
    assert attempts.times == [0, 10]


@in_virtual_time
async def test_nothing_is_started_without_jobs() -> None:
    """Also when jobs are switched off between two attempts."""
    attempts = Attempts(99)
    config: list[JobsConfig | None] = [CONFIG]
    starter = JobStarter(lambda: config[0], attempts)
    starter.start()
    await asyncio.sleep(1)
    config[0] = None
    await asyncio.sleep(100 * RETRY_S)
    starter.start()
    await asyncio.sleep(100 * RETRY_S)
    assert attempts.times == [0]


def test_the_actor_starts_on_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no CPU, so Ray would count a worker with the actor alone as idle, and end it."""
    ray = MagicMock()
    monkeypatch.setattr(job_actor, "ray", ray)
    job_actor._wake_actor("jobs", 4)
    options = ray.remote.return_value.options.call_args.kwargs
    assert (options["num_cpus"], list(options["resources"])) == (0, ["node:__internal_head__"])


def test_folder_that_cannot_be_swept_still_starts_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old jobs can wait, open ones go on."""
    store = JobStore(tmp_path)
    submit_job(store)
    woken: list[str] = []

    def fail(self: JobStore, keep_days: float) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(JobStore, "sweep", fail)
    monkeypatch.setattr(job_actor, "_wake_actor", lambda folder, workers: woken.append(folder))
    asyncio.run(start_jobs(JobsConfig(folder=str(tmp_path))))
    assert woken == [str(tmp_path)]


def test_damaged_job_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty job.json raised here before, in every starting replica."""
    store = JobStore(tmp_path)
    (tmp_path / submit_job(store) / "job.json").write_bytes(b"")
    woken: list[str] = []
    monkeypatch.setattr(job_actor, "_wake_actor", lambda folder, workers: woken.append(folder))
    asyncio.run(start_jobs(JobsConfig(folder=str(tmp_path))))
    assert woken == []
