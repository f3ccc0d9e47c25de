"""Submits jobs to a job store without HTTP, and runs them with small programs instead of `serve-app predict`."""

from __future__ import annotations

import sys

from serve_app.batch.job_records import UPLOAD, JobRequest
from serve_app.batch.job_store import JobStore
from serve_app.batch.supervisor import Supervisor
from serve_app.config import EngineConfig, LimitsConfig, WeightsConfig
from serve_app.model_card import ModelRef


def submit_job(store: JobStore, location: str | None = None, caller: str | None = None, key: str | None = None) -> str:
    """Submit a job for a folder, or for a zip if there is none; return the job's id.

    Args:
        store: The folder of jobs.
        location: The folder; None for a zip.
        caller: Name of the API key.
        key: Idempotency-Key.
    """
    draft = store.draft()
    if location is None:
        (draft / UPLOAD).write_bytes(b"zip")
    request = JobRequest(
        caller=caller,
        source="photos",
        location=location,
        body_sha256="0",
        top_k=1,
        weights=WeightsConfig(),
        engine=EngineConfig(),
        limits=LimitsConfig(),
        model=ModelRef(name="resnet18", version="1", sha256="0" * 64),
    )
    return store.submit(draft, request, key)


class FakeCommand:
    """Makes command lines of small Python programs instead of `serve-app predict`, and counts them."""

    def __init__(self, program: str) -> None:
        self.program, self.jobs = program, list[str]()

    def __call__(self, store: JobStore, job: str, address: str | None, workers: int | None) -> list[str]:
        self.jobs.append(job)
        attempt = self.jobs.count(job)
        return [sys.executable, "-c", self.program, str(store.results_path(job)), str(attempt)]


# Writes the summary that makes a job succeed.
SUCCEED = """
import pathlib, sys
results = pathlib.Path(sys.argv[1])
results.mkdir(parents=True, exist_ok=True)
(results / "summary.json").write_text("{}")
"""


def run_jobs(store: JobStore, program: str) -> FakeCommand:
    """Run all open jobs with a program as the command."""
    command = FakeCommand(program)
    Supervisor(store, command=command, poll_s=0.01, busy_retry_s=0.01, retry_s=0.01).run_open_jobs()
    return command
