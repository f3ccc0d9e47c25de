"""The folder of jobs. Everything about a job is in files, so that it survives every process.

    <id>/job.json       the request; never changes
    <id>/upload.zip     the uploaded zip; absent for a job that names a source
    <id>/progress.json  written by `serve-app predict`
    <id>/results/       the folder of results, see results.py; its summary.json means success
    <id>/failed.json    why the job failed
    <id>/cancelled      an empty file: the client cancelled the job

A job arrives in a draft folder and appears by one rename.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from serve_app.config import EngineConfig, FrozenModel, LimitsConfig, WeightsConfig
from serve_app.errors import ConflictError, UnknownJobError
from serve_app.files import atomic_write
from serve_app.model_card import ModelRef
from serve_app.paths import ROOT

ID = re.compile("[0-9a-f]{32}")
DRAFT = ".draft-"
MAX_DRAFT_AGE_S = 86400  # an upload that is older was abandoned
UPLOAD, RESULTS = "upload.zip", "results"
OUTCOMES = {"cancelled": "cancelled", "failed": "failed.json", "succeeded": f"{RESULTS}/summary.json"}


class JobProgress(FrozenModel):
    """Images counted so far."""

    total: int | None = Field(default=None, description="Images of the job; null until they are listed.")
    done: int = Field(default=0, description="Images with a row, failed images included.")
    failed: int = Field(default=0, description="Images whose row is an error.")


class JobState(FrozenModel):
    """State of a batch job."""

    id: str = Field(description="32 hexadecimal digits.")
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created: datetime
    source: str = Field(description="The folder or prefix that the job reads, or the file name of its zip.")
    top_k: int = Field(description="Classes per image.")
    model: ModelRef
    progress: JobProgress
    eta_s: float | None = Field(default=None, description="Seconds until the job ends; null while unknown.")
    error: str | None = Field(default=None, description="Why the job failed; null for every other status.")


class JobRequest(FrozenModel):
    """What a client submitted, with the model that served at that moment; the content of ``job.json``."""

    caller: str | None  # name of the API key
    owner: str | None = None  # whom the caller named in X-Job-Owner
    source: str  # what clients see
    location: str | None  # folder or bucket prefix to read; None for an uploaded zip
    body_sha256: str  # of the zip, or of the location
    top_k: int
    weights: WeightsConfig
    engine: EngineConfig
    limits: LimitsConfig
    model: ModelRef
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))


class JobStore:
    """Reads and writes the jobs of one folder; several processes may use the folder at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def draft(self) -> Path:
        """Create a folder for a job that is still being uploaded."""
        path = self.folder / f"{DRAFT}{uuid.uuid4().hex}"
        path.mkdir(parents=True)
        return path

    def submit(self, draft: Path, request: JobRequest, idempotency_key: str | None) -> str:
        """Turn a draft into a job, or find the job that this caller submitted with the same key; return its id.

        Raises:
            ConflictError: The key belongs to a job with another body or top_k (409).
        """
        if idempotency_key:
            job = hashlib.sha256(f"{request.caller}\0{idempotency_key}".encode()).hexdigest()[:32]
        else:
            job = uuid.uuid4().hex
        (draft / "job.json").write_text(request.model_dump_json(indent=2))
        try:
            draft.rename(self.folder / job)  # fails for a job that exists, because its folder is not empty
        except OSError:
            earlier = self.request(job, request.caller)
            if (earlier.body_sha256, earlier.top_k) != (request.body_sha256, request.top_k):
                raise ConflictError(
                    f"Idempotency-Key {idempotency_key!r:.80} was used for another job, {job}; use a new key"
                ) from None
        return job

    def request(self, job: str, caller: str | None = None) -> JobRequest:
        """Return what was submitted.

        Raises:
            UnknownJobError: No such job, or another caller's job (404).
        """
        path = self._path(job) / "job.json"
        with suppress(FileNotFoundError):
            request = JobRequest.model_validate_json(path.read_bytes())
            if caller in (None, request.caller):
                return request
        raise UnknownJobError(f"no job {job!r:.80}; jobs are deleted some days after they have ended")

    def state(self, job: str, caller: str | None = None) -> JobState:
        """Return a job's state; raise the errors of ``request``."""
        request, path = self.request(job, caller), self._path(job)
        outcome = next((outcome for outcome, name in OUTCOMES.items() if (path / name).exists()), None)
        progress = _read(path / "progress.json")
        eta_s = progress.pop("eta_s", None)
        return JobState(
            id=job,
            status=outcome or ("running" if progress else "queued"),
            **request.model_dump(include={"created", "source", "top_k", "model"}),
            progress=JobProgress(**progress),
            eta_s=None if outcome else eta_s,
            error=_read(path / OUTCOMES["failed"]).get("error") if outcome == "failed" else None,
        )

    def jobs(self, caller: str | None = None) -> list[JobState]:
        """Return a caller's jobs, or all jobs, the newest first."""
        states = []
        for job in self._ids():
            with suppress(UnknownJobError):  # another caller's, or deleted a moment ago
                states.append(self.state(job, caller))
        return sorted(states, key=lambda state: state.created, reverse=True)

    def open_jobs(self) -> list[str]:
        """Return the ids of the jobs that have not ended, the oldest first."""
        return [state.id for state in reversed(self.jobs()) if state.status in ("queued", "running")]

    def cancel(self, job: str) -> None:
        """Cancel a job, unless it has ended."""
        if job in self.open_jobs():
            (self._path(job) / OUTCOMES["cancelled"]).touch()

    def fail(self, job: str, error: str) -> None:
        """Record why a job failed."""
        with atomic_write(self._path(job) / OUTCOMES["failed"]) as path:
            path.write_text(json.dumps({"error": error}))

    def drop_upload(self, job: str) -> None:
        """Delete the zip of a job that needs it no more."""
        (self._path(job) / UPLOAD).unlink(missing_ok=True)

    def input_path(self, job: str) -> str:
        """Return the source for `serve-app predict`."""
        return self.request(job).location or str(self._path(job) / UPLOAD)

    def results_path(self, job: str) -> Path:
        """Return the job's folder of results."""
        return self._path(job) / RESULTS

    def progress_path(self, job: str) -> Path:
        """Return the file to which `serve-app predict` writes its progress."""
        return self._path(job) / "progress.json"

    def sweep(self, keep_days: float) -> None:
        """Delete jobs that ended more than ``keep_days`` ago, zips of ended jobs, and abandoned drafts."""
        now = time.time()
        for path in self.folder.glob(f"{DRAFT}*"):
            if now - path.stat().st_mtime > MAX_DRAFT_AGE_S:
                shutil.rmtree(path, ignore_errors=True)
        for job in self._ids():
            path = self._path(job)
            ended = [(path / name).stat().st_mtime for name in OUTCOMES.values() if (path / name).exists()]
            if not ended:
                continue
            self.drop_upload(job)
            if now - min(ended) > keep_days * 86400:
                (path / "job.json").unlink(missing_ok=True)  # first, so that no reader meets a half-deleted job
                shutil.rmtree(path, ignore_errors=True)

    def _ids(self) -> Iterator[str]:
        return (path.name for path in self.folder.glob("*") if ID.fullmatch(path.name))

    def _path(self, job: str) -> Path:
        if not ID.fullmatch(job):
            raise UnknownJobError(f"no job {job!r:.80}: an id has 32 hexadecimal digits")
        return self.folder / job


def open_store(folder: str) -> JobStore:
    """Return the store of ``jobs.folder``; a relative folder is below the project."""
    return JobStore(ROOT / folder)


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; an empty dictionary if there is no such file."""
    with suppress(FileNotFoundError):
        return dict(json.loads(path.read_text()))
    return {}
