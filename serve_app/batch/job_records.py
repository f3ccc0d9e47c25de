"""What a job's folder says about it: the request, its progress and outcome, as types, read leniently.

job_store.py lists the files. A file that is empty, cut or of a newer version counts as missing.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field

from serve_app.config import EngineConfig, LimitsConfig, WeightsConfig
from serve_app.errors import UnknownJobError
from serve_app.files import CorruptFileError, read_stored
from serve_app.model_card import ModelRef
from serve_app.settings import FrozenModel

ID = re.compile("[0-9a-f]{32}")
DRAFT, DELETED = ".draft-", ".deleted-"
REQUEST, UPLOAD, RESULTS, HEAD = "job.json", "upload.zip", "results", "head"
PROGRESS, ATTEMPTS, STOPPED = "progress.json", "attempts.json", "stopped"
OPEN = ("queued", "running")
OUTCOMES = {"cancelled": "cancelled", "failed": "failed.json", "succeeded": f"{RESULTS}/summary.json"}
Outcome = Literal["cancelled", "failed", "succeeded"]
Stored = TypeVar("Stored", bound=FrozenModel)


class JobProgress(FrozenModel):
    """Images counted so far."""

    total: int | None = Field(default=None, description="Images of the job; null until they are listed.")
    done: int = Field(default=0, description="Images with a row, failed images included.")
    failed: int = Field(default=0, description="Images whose row is an error.")


class JobHead(FrozenModel):
    """The head whose classes the results of a job name, as it was when the job was submitted."""

    name: str
    version: str


class JobState(FrozenModel):
    """State of a batch job."""

    id: str = Field(description="32 hexadecimal digits.")
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created: datetime
    source: str = Field(description="The folder or prefix that the job reads, or the file name of its zip.")
    top_k: int = Field(description="Classes per image.")
    embed: bool = Field(default=False, description="The results have the embedding of each image.")
    head: JobHead | None = Field(default=None, description="The head whose classes the results name.")
    model: ModelRef
    progress: JobProgress
    eta_s: float | None = Field(default=None, description="Seconds until the job ends; null while unknown.")
    error: str | None = Field(default=None, description="Why the job failed; null for every other status.")


SHOWN = {"created", "source", "top_k", "embed", "head", "model"}  # fields of a request that its state shows


class JobSummary(FrozenModel):
    """The part of a request that lists of jobs show; every version of the service can read it."""

    caller: str | None  # name of the API key
    owner: str | None = None  # whom the caller named in X-Job-Owner
    source: str  # what clients see
    top_k: int
    embed: bool = False
    head: JobHead | None = None
    model: ModelRef
    created: Annotated[datetime, AfterValidator(lambda time: time if time.tzinfo else time.replace(tzinfo=UTC))] = (
        Field(default_factory=lambda: datetime.now(UTC))
    )


class JobRequest(JobSummary):
    """What a client submitted, with the model that served at that moment; the content of ``job.json``."""

    location: str | None  # folder or bucket prefix to read; None for an uploaded zip
    body_sha256: str  # of the zip, or of the location
    weights: WeightsConfig
    engine: EngineConfig
    limits: LimitsConfig


class JobAttempts(FrozenModel):
    """How many attempts were made to run a job; the content of ``attempts.json``."""

    started: int = 0  # attempts that crashed, or that are in progress
    outages: int = 0  # attempts that met an error that passes, such as a full disk or a source that is away


class StoredProgress(JobProgress):
    """Content of ``progress.json``."""

    eta_s: float | None = None


class StoredFailure(FrozenModel):
    """Content of ``failed.json``."""

    error: str = "the job failed; the reason is lost"


class StoredSummary(FrozenModel):
    """Content of ``summary.json``, of which only the existence counts."""


def read_or_default(kind: type[Stored], path: Path) -> Stored:
    """Return the content of a JSON file; the defaults if it is missing or cannot be read."""
    with suppress(FileNotFoundError, CorruptFileError):
        return read_stored(kind, path)
    return kind()


def read_outcome(folder: Path) -> Outcome | None:
    """Return how the job in a folder ended; None while it is open."""
    if (folder / OUTCOMES["cancelled"]).exists():
        return "cancelled"
    if (folder / OUTCOMES["failed"]).exists():
        return "failed"
    with suppress(FileNotFoundError, CorruptFileError):
        read_stored(StoredSummary, folder / OUTCOMES["succeeded"])
        return "succeeded"
    return None


def read_request(folder: Path, caller: str | None = None, owner: str | None = None) -> tuple[JobSummary | None, str]:
    """Return the request in a job's folder; if it cannot be read, what is left of it, if anything, and the reason.

    Raises:
        UnknownJobError: No such job, or another caller's or owner's job (404).
    """
    unknown = UnknownJobError(f"no job {folder.name!r:.80}; jobs are deleted some days after they have ended")
    request: JobSummary | None = None
    reason = ""
    try:
        request = read_stored(JobRequest, folder / REQUEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        if isinstance(error, NotADirectoryError) and not folder.parent.is_dir():
            raise  # the folder of jobs itself cannot be used
        raise unknown from None
    except CorruptFileError as error:
        reason = f"job {folder.name} is damaged or was written by another version ({error}); submit it again"
        with suppress(OSError, CorruptFileError):
            request = read_stored(JobSummary, folder / REQUEST)
    if request and (caller not in (None, request.caller) or owner not in (None, request.owner)):
        raise unknown
    return request, reason
