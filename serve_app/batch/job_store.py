"""The folder of jobs: what was asked, how far it is, how it ended. All of it is in files, so that it outlives everyone.

    <id>/job.json       what was asked; never changes
    <id>/upload.zip     unless it has a prefix
    <id>/progress.json  of the command that works on it
    <id>/results/       its folder of results, see output.py; with summary.json in it all is done
    <id>/failed.json    why it failed
    <id>/cancelled      somebody wants no more of it

A job appears whole, by renaming its draft.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from serve_app.config import EngineConfig, FrozenModel, LimitsConfig, WeightsConfig
from serve_app.errors import ConflictError, UnknownJobError
from serve_app.files import whole
from serve_app.model_card import ModelRef
from serve_app.paths import ROOT

ID = re.compile("[0-9a-f]{32}")
DRAFT = ".draft-"
DRAFT_S = 86400  # an upload that is older was given up
UPLOAD, RESULTS = "upload.zip", "results"
ENDS = {"cancelled": "cancelled", "failed": "failed.json", "succeeded": f"{RESULTS}/summary.json"}


class JobProgress(FrozenModel):
    """How far a job is."""

    total: int | None = Field(default=None, description="Images; null until they are listed.")
    done: int = Field(default=0, description="Images with a row, failed ones included.")
    failed: int = 0


class JobState(FrozenModel):
    """A batch job as it is now."""

    id: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created: datetime
    source: str = Field(description="The prefix, or the zip's name.")
    top_k: int
    model: ModelRef
    progress: JobProgress
    eta_s: float | None = Field(default=None, description="Seconds until it ends; null while that is not known.")
    error: str | None = Field(default=None, description="Why it failed.")


class Request(FrozenModel):
    """What was asked, in ``job.json``."""

    caller: str | None = Field(description="Name of the API key.")
    source: str = Field(description="What a client sees of it.")
    location: str | None = Field(description="Folder or prefix that is read; none for a zip.")
    body: str = Field(description="Hash of what was sent.")
    top_k: int
    weights: WeightsConfig
    engine: EngineConfig
    limits: LimitsConfig
    model: ModelRef
    created: datetime


class Store:
    """Jobs of one folder; any number of processes may have it open."""

    def __init__(self, folder: Path) -> None:
        """Look at nothing yet."""
        self.folder = folder

    def draft(self) -> Path:
        """Make a folder for a job that is still arriving."""
        path = self.folder / f"{DRAFT}{uuid.uuid4().hex}"
        path.mkdir(parents=True)
        return path

    def submit(self, draft: Path, request: Request, key: str | None) -> str:
        """Make a job of a draft, or find the one that this caller has made with the same key.

        Returns:
            Its id.

        Raises:
            ConflictError: The key was used for something else (409).
        """
        name = hashlib.sha256(f"{request.caller}\0{key}".encode()).hexdigest()[:32] if key else uuid.uuid4().hex
        (draft / "job.json").write_text(request.model_dump_json(indent=2))
        try:
            draft.rename(self.folder / name)  # fails if it is there: folders of jobs are never empty
        except OSError:
            before = self.request(name, request.caller)
            if (before.body, before.top_k) != (request.body, request.top_k):
                raise ConflictError(f"Idempotency-Key {key!r:.80} was used for another job, {name}") from None
        return name

    def request(self, job: str, caller: str | None = None) -> Request:
        """What was asked.

        Raises:
            UnknownJobError: There is no such job, or it is someone else's (404).
        """
        try:
            found = Request.model_validate_json((self._path(job) / "job.json").read_bytes())
        except FileNotFoundError:
            raise UnknownJobError(f"no job {job!r:.80} here; it may be forgotten by now") from None
        if caller is not None and found.caller != caller:
            raise UnknownJobError(f"no job {job!r:.80} here; it may be forgotten by now")
        return found

    def state(self, job: str, caller: str | None = None) -> JobState:
        """How a job is.

        Raises:
            UnknownJobError: As for ``request``.
        """
        asked, path = self.request(job, caller), self._path(job)
        status = next((end for end, name in ENDS.items() if (path / name).exists()), None)
        found = _read(path / "progress.json")
        eta_s = found.pop("eta_s", None)
        return JobState(
            id=job,
            status=status or ("running" if found else "queued"),
            created=asked.created,
            source=asked.source,
            top_k=asked.top_k,
            model=asked.model,
            progress=JobProgress(**found),
            eta_s=None if status else eta_s,
            error=_read(path / ENDS["failed"]).get("error") if status == "failed" else None,
        )

    def jobs(self, caller: str | None = None) -> list[JobState]:
        """Someone's jobs, or all; the newest first."""
        states = []
        for job in self._names():
            try:
                states.append(self.state(job, caller))
            except UnknownJobError:  # someone else's, or just forgotten
                continue
        return sorted(states, key=lambda state: state.created, reverse=True)

    def open_jobs(self) -> list[str]:
        """Those that have not ended, the oldest first."""
        return [state.id for state in reversed(self.jobs()) if state.status in ("queued", "running")]

    def cancel(self, job: str) -> None:
        """Ask for the end of a job; one that has ended stays as it is."""
        if job in self.open_jobs():
            (self._path(job) / ENDS["cancelled"]).touch()

    def fail(self, job: str, error: str) -> None:
        """Say why a job cannot be done."""
        with whole(self._path(job) / ENDS["failed"]) as path:  # others look at any time
            path.write_text(json.dumps({"error": error}))

    def drop_upload(self, job: str) -> None:
        """Forget what a job has brought."""
        (self._path(job) / UPLOAD).unlink(missing_ok=True)

    def input(self, job: str) -> str:
        """What the command is to read."""
        return self.request(job).location or str(self._path(job) / UPLOAD)

    def results(self, job: str) -> Path:
        """Where a job's results are."""
        return self._path(job) / RESULTS

    def progress(self, job: str) -> Path:
        """Where the command is to say how far it is."""
        return self._path(job) / "progress.json"

    def sweep(self, keep_days: float) -> None:
        """Forget jobs that ended so long ago, uploads that are not needed, and drafts that were given up."""
        now = time.time()
        for path in self.folder.glob(f"{DRAFT}*"):
            if now - path.stat().st_mtime > DRAFT_S:
                shutil.rmtree(path, ignore_errors=True)
        for job in self._names():
            path = self._path(job)
            ended = [(path / name).stat().st_mtime for name in ENDS.values() if (path / name).exists()]
            if not ended:
                continue
            self.drop_upload(job)
            if now - min(ended) > keep_days * 86400:
                (path / "job.json").unlink(missing_ok=True)  # nobody finds it half gone
                shutil.rmtree(path, ignore_errors=True)

    def _names(self) -> Iterator[str]:
        return (path.name for path in self.folder.glob("*") if ID.fullmatch(path.name))

    def _path(self, job: str) -> Path:
        if not ID.fullmatch(job):
            raise UnknownJobError(f"no job {job!r:.80} here: an id has 32 hexadecimal digits")
        return self.folder / job


def open_store(folder: str) -> Store:
    """The store that a config names."""
    return Store(ROOT / folder)


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found
