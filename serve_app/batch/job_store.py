"""The folder of jobs. Everything about a job is in files, so that it survives every process and a power cut.

    <id>/job.json       the request; never changes
    <id>/upload.zip     the uploaded zip, kept until the job has ended; absent for a job that names a source
    <id>/head/          the version of a head that the job uses, if any
    <id>/attempts.json  how many attempts were made; the supervisor writes it before each attempt
    <id>/stopped        an empty file: SIGINT or SIGTERM ended the last attempt, which therefore does not count
    <id>/log.txt        messages of the last attempt
    <id>/progress.json  written by `serve-app predict`
    <id>/results/       the folder of results, see results.py; its summary.json means success
    <id>/failed.json    why the job failed
    <id>/cancelled      an empty file: the client cancelled the job
    .draft-<hex>/       a job that is still arriving
    .deleted-<hex>/     an old job that a sweep is deleting
    .sweep.lock         held by the process that sweeps

A job arrives in a draft folder and appears by one rename, once its files are on disk. A file that is empty, cut or of
a newer version counts as missing. Without a readable job.json the job counts as failed; its files stay, because after
an upgrade a newer job.json reads again. A damaged job never affects the other jobs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from serve_app.batch.job_records import (
    ATTEMPTS,
    DRAFT,
    HEAD,
    ID,
    OPEN,
    OUTCOMES,
    PROGRESS,
    REQUEST,
    RESULTS,
    SHOWN,
    STOPPED,
    UPLOAD,
    JobAttempts,
    JobHead,
    JobProgress,
    JobRequest,
    JobState,
    JobSummary,
    Outcome,
    StoredFailure,
    StoredProgress,
    read_or_default,
    read_outcome,
    read_request,
)
from serve_app.batch.job_sweep import delete, sweep
from serve_app.errors import ConflictError, CorruptJobError, UnknownJobError
from serve_app.files import atomic_write, create_folder, fsync
from serve_app.model_card import ModelRef
from serve_app.paths import data_path

SAME = ("body_sha256", "top_k", "embed", "head")  # of two requests with one Idempotency-Key
log = logging.getLogger("serve_app")


class JobStore:
    """Reads and writes the jobs of one folder; several processes may use the folder at a time.

    Methods that take a ``caller`` and an ``owner`` see only jobs of that API key and owner; None means of all.
    Every method raises OSError if the folder cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def draft(self) -> Path:
        """Create a folder for a job that is still being uploaded."""
        create_folder(self.folder)
        path = self.folder / f"{DRAFT}{uuid.uuid4().hex}"
        path.mkdir()
        return path

    def submit(self, draft: Path, request: JobRequest, idempotency_key: str | None) -> str:
        """Turn a draft into a job, or find the job that this caller submitted with the same key; return its id.

        Nothing fails once the job exists.

        Raises:
            ConflictError: The key belongs to a job with another body or options, or to one that cannot be read (409).
        """
        if idempotency_key:
            job = hashlib.sha256(f"{request.caller}\0{idempotency_key}".encode()).hexdigest()[:32]
        else:
            job = uuid.uuid4().hex
        if request.location is None:
            fsync(draft / UPLOAD)
        with atomic_write(draft / REQUEST) as path:
            path.write_text(request.model_dump_json(indent=2))
        if not self._publish(draft, job):
            try:
                earlier = self.request(job, request.caller)
            except UnknownJobError:  # its job.json is lost, so nobody can see it
                delete(self.folder / job)
                return self.submit(draft, request, idempotency_key)
            except CorruptJobError as error:
                raise ConflictError(f"Idempotency-Key {idempotency_key!r:.80}: {error}, with a new key") from None
            if any(getattr(earlier, name) != getattr(request, name) for name in SAME):
                raise ConflictError(
                    f"Idempotency-Key {idempotency_key!r:.80} was used for another job, {job}; use a new key"
                )
        return job

    def request(self, job: str, caller: str | None = None, owner: str | None = None) -> JobRequest:
        """Return what was submitted.

        Raises:
            UnknownJobError: No such job, or another caller's or owner's job (404).
            CorruptJobError: The request cannot be read (409).
        """
        request, corrupt = read_request(self._path(job), caller, owner)
        if not isinstance(request, JobRequest):
            raise CorruptJobError(corrupt)
        return request

    def state(self, job: str, caller: str | None = None, owner: str | None = None) -> JobState:
        """Return a job's state; one that cannot be read has failed.

        Whoever knows the id of a job without a readable caller and owner may see that it failed.

        Raises:
            UnknownJobError: No such job, or another caller's or owner's job (404).
        """
        request, corrupt = read_request(self._path(job), caller, owner)
        return self._state(job, request or self._unknown_request(job), corrupt)

    def jobs(self, caller: str | None = None, owner: str | None = None) -> list[JobState]:
        """Return jobs, the newest first; jobs without a readable caller and owner only among all jobs."""
        states = [state for _, state in self._read_all(caller, owner)]
        return sorted(states, key=lambda state: state.created, reverse=True)

    def open_jobs(self) -> list[str]:
        """Return the ids of the jobs that have not ended, the oldest first."""
        return [state.id for state in reversed(self.jobs()) if state.status in OPEN]

    def count_open_jobs(self) -> Counter[str | None]:
        """Return how many jobs of each caller have not ended."""
        return Counter(caller for caller, state in self._read_all() if state.status in OPEN)

    def cancel(self, job: str) -> None:
        """Cancel a job, unless it has ended."""
        if self.state(job).status in OPEN:
            (self._path(job) / OUTCOMES["cancelled"]).touch()
            fsync(self._path(job))

    def fail(self, job: str, error: str) -> None:
        """Record why a job failed."""
        with atomic_write(self._path(job) / OUTCOMES["failed"]) as path:
            path.write_text(json.dumps({"error": error}))

    def attempts(self, job: str) -> JobAttempts:
        """Return how many attempts were made; one that was stopped by SIGINT or SIGTERM does not count."""
        attempts = read_or_default(JobAttempts, self._path(job) / ATTEMPTS)
        if self.stopped_path(job).exists():
            return attempts.model_copy(update={"started": max(0, attempts.started - 1)})
        return attempts

    def record_attempts(self, job: str, attempts: JobAttempts) -> None:
        """Write how many attempts were made, the one that is about to start included; it is on disk on return."""
        with atomic_write(self._path(job) / ATTEMPTS) as path:
            path.write_text(attempts.model_dump_json())
        if (stopped := self.stopped_path(job)).exists():
            stopped.unlink()
            fsync(stopped.parent)

    def drop_upload(self, job: str) -> None:
        """Delete the zip of a job that needs it no more."""
        (self._path(job) / UPLOAD).unlink(missing_ok=True)

    def input_path(self, job: str) -> str:
        """Return the source for `serve-app predict`."""
        request, _ = read_request(self._path(job))
        location = request.location if isinstance(request, JobRequest) else None
        return location or str(self._path(job) / UPLOAD)

    def head_path(self, job: str, head: JobHead) -> Path:
        """Return the folder of the job's head, which ``heads.versions.read_head`` reads."""
        return self._path(job) / HEAD / head.version

    def results_path(self, job: str) -> Path:
        """Return the job's folder of results."""
        return self._path(job) / RESULTS

    def progress_path(self, job: str) -> Path:
        """Return the file to which `serve-app predict` writes its progress."""
        return self._path(job) / PROGRESS

    def stopped_path(self, job: str) -> Path:
        """Return the file that `serve-app predict` creates when SIGINT or SIGTERM ends it."""
        return self._path(job) / STOPPED

    def sweep(self, keep_days: float) -> None:
        """Delete old jobs, zips of ended jobs, and abandoned drafts; see job_sweep.py."""
        sweep(self.folder, keep_days)

    def _publish(self, draft: Path, job: str) -> bool:
        """Make a draft the job of this id; return False if there is one, whose folder is not empty."""
        try:
            draft.rename(self.folder / job)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        try:
            fsync(self.folder)
        except OSError as error:  # the job exists, so its caller gets its id
            log.warning("job %s: a power cut now would lose it: %s", job, error)
        return True

    def _read_all(self, caller: str | None = None, owner: str | None = None) -> Iterator[tuple[str | None, JobState]]:
        """Yield the caller and the state of each job."""
        for job in self._ids():
            try:
                request, corrupt = read_request(self._path(job), caller, owner)
                if request or (caller is None and owner is None):
                    request = request or self._unknown_request(job)
                    yield request.caller, self._state(job, request, corrupt)
            except UnknownJobError:  # another caller's or owner's, or deleted a moment ago
                continue
            except OSError as error:
                log.warning("job %s: cannot be read now: %s", job, error)

    def _state(self, job: str, request: JobSummary, corrupt: str) -> JobState:
        path = self._path(job)
        outcome: Outcome | None = "failed" if corrupt else read_outcome(path)
        progress = read_or_default(StoredProgress, path / PROGRESS)
        failure = corrupt or read_or_default(StoredFailure, path / OUTCOMES["failed"]).error
        return JobState(
            id=job,
            status=outcome or ("running" if progress != StoredProgress() else "queued"),
            **request.model_dump(include=SHOWN),
            progress=JobProgress(**progress.model_dump(exclude={"eta_s"})),
            eta_s=None if outcome else progress.eta_s,
            error=failure if outcome == "failed" else None,
        )

    def _unknown_request(self, job: str) -> JobSummary:
        """Return what to show of a job whose request is lost."""
        unknown = ModelRef(name="unknown", version="unknown", sha256="")
        try:
            created = datetime.fromtimestamp((self._path(job) / REQUEST).stat().st_mtime, UTC)
        except FileNotFoundError:
            raise UnknownJobError(f"no job {job!r:.80}") from None
        return JobSummary(caller=None, source="unknown", top_k=1, model=unknown, created=created)

    def _ids(self) -> list[str]:
        try:
            return [name for name in os.listdir(self.folder) if ID.fullmatch(name)]
        except FileNotFoundError:  # no job was submitted yet
            return []

    def _path(self, job: str) -> Path:
        if not ID.fullmatch(job):
            raise UnknownJobError(f"no job {job!r:.80}: an id has 32 hexadecimal digits")
        return self.folder / job


def open_store(folder: str) -> JobStore:
    """Return the store of ``jobs.folder``; a relative folder is below the project."""
    return JobStore(Path(data_path(folder)))
