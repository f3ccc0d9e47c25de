"""Ended jobs are deleted when they are old or too many."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from serve_app.batch.job_store import JobStore
from serve_app.batch.retention import delete_ended_jobs
from serve_app.config import JobsConfig
from tests.support.jobs import submit_job

DAY_S = 86400


def ended(store: JobStore, days_ago: float) -> str:
    """Submit a job that failed some days ago."""
    job = submit_job(store)
    store.fail(job, "why")
    os.utime(store.folder / job / "failed.json", (time.time() - days_ago * DAY_S,) * 2)
    return job


@pytest.mark.parametrize(("max_ended_jobs", "kept"), [(10, 3), (3, 3), (2, 2), (1, 1)])
def test_the_newest_ended_jobs_are_kept(tmp_path: Path, max_ended_jobs: int, kept: int) -> None:
    """Those within `keep_days`, at most `max_ended_jobs` of them; open jobs always."""
    store = JobStore(tmp_path)
    by_age = [ended(store, days) for days in (1, 2, 3, 8)]
    waiting = submit_job(store)
    delete_ended_jobs(store, JobsConfig(folder=str(tmp_path), keep_days=7, max_ended_jobs=max_ended_jobs))
    assert {state.id for state in store.jobs()} == {*by_age[:kept], waiting}


@pytest.mark.parametrize(("max_bytes", "kept"), [(100_000, 3), (16_000, 2), (9_000, 1), (1, 1)])
def test_the_newest_results_within_the_bound_are_kept(tmp_path: Path, max_bytes: int, kept: int) -> None:
    """At most `max_bytes` of ended jobs, the last one in any case; open jobs do not count."""
    store = JobStore(tmp_path)
    by_age = [ended(store, days) for days in (1, 2, 3)]
    waiting = submit_job(store)
    for job in (*by_age, waiting):
        (store.folder / job / "part.parquet").write_bytes(bytes(6000))
    delete_ended_jobs(store, JobsConfig(folder=str(tmp_path), max_bytes=max_bytes))
    assert {state.id for state in store.jobs()} == {*by_age[:kept], waiting}


def test_a_folder_that_does_not_exist_yet_has_no_jobs(tmp_path: Path) -> None:
    delete_ended_jobs(JobStore(tmp_path / "none"), JobsConfig(folder="none"))
