"""Owners of jobs: a client that serves several people, such as the page, names the person in a header.

The owner is stored with the job. A request with the header sees only that owner's jobs; a request without it sees all
jobs of its API key.
"""

from __future__ import annotations

import re

from starlette.requests import Request

from serve_app.batch.job_records import JobState
from serve_app.batch.job_store import JobStore
from serve_app.errors import InvalidParameterError, ServiceError, UnknownJobError

HEADER = "X-Job-Owner"
OWNER = re.compile(r"[\w.-]{1,128}", re.ASCII)


def read_owner(request: Request) -> str | None:
    """Return the owner that a request names, or None.

    Raises:
        InvalidParameterError: The header is no valid name (422).
    """
    owner = request.headers.get(HEADER)
    if owner is not None and not OWNER.fullmatch(owner):
        raise InvalidParameterError(f"{HEADER}: {owner!r:.80} does not match {OWNER.pattern}; send a hash of the name")
    return owner


def check_owner(jobs: JobStore, job: str, request: Request) -> None:
    """Check that a job belongs to the owner that a request names, if it names one; this reads files.

    Raises:
        UnknownJobError: No such job, or another caller's or owner's job (404).
        InvalidParameterError: The header is no valid name (422).
    """
    owner = read_owner(request)
    if owner is not None and jobs.request(job, request.state.caller).owner != owner:
        raise UnknownJobError(f"no job {job!r:.80}; jobs are deleted some days after they have ended")


def visible_jobs(jobs: JobStore, request: Request) -> list[JobState]:
    """Return the jobs that a request may see, the newest first; this reads files.

    Raises:
        InvalidParameterError: The header is no valid name (422).
    """
    states = jobs.jobs(request.state.caller)
    return states if read_owner(request) is None else [state for state in states if _is_visible(jobs, state, request)]


def _is_visible(jobs: JobStore, state: JobState, request: Request) -> bool:
    try:
        check_owner(jobs, state.id, request)
    except ServiceError:  # another owner's, or deleted a moment ago
        return False
    return True


def scoped_key(key: str | None, owner: str | None) -> str | None:
    """Return an Idempotency-Key that no other owner shares."""
    return f"{owner}\0{key}" if key and owner else key
