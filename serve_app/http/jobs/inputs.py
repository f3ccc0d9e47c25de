"""Read what a new job classifies: an uploaded zip, or the name of a folder, a zip or a bucket prefix."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from fastapi import Request
from pydantic import Field

from serve_app.batch.job_records import UPLOAD
from serve_app.batch.zip_archive import check_zip
from serve_app.config import JobsConfig
from serve_app.errors import ForbiddenSourceError, MalformedRequestError, UnsupportedImageError
from serve_app.http.jobs.uploads import FORM, RAW_TYPES, save_zip
from serve_app.http.limited_request import LimitedRequest
from serve_app.http.uploads import RequestModel, content_type, read_json

MAX_JSON_BYTES = 64 * 1024


class JobSource(RequestModel):
    """The JSON body of a job that reads a folder or bucket instead of a zip."""

    source: str = Field(min_length=1, max_length=1000, description="A bucket prefix (`s3://…`) or a folder.")


class JobInput(NamedTuple):
    """The images of a new job."""

    sha256: str  # of the zip, or of the location
    name: str  # what clients see as the source
    location: str | None  # folder or bucket prefix to read; None for a zip, which is in the draft folder
    files: int  # in the zip; 0 for a location, whose files are counted by the job


async def receive_input(request: Request, draft: Path, limits: JobsConfig) -> JobInput:
    """Read the body of a new job; a zip goes to the draft folder."""
    kind = content_type(request)
    if kind == "application/json":
        limited = LimitedRequest(request.scope, request.receive, MAX_JSON_BYTES)
        source = (await read_json(limited, JobSource)).source
        location, files = await asyncio.to_thread(_find_source, source, limits)
        return JobInput(hashlib.sha256(location.encode()).hexdigest(), source, location, files)
    if kind not in (*RAW_TYPES, FORM):
        raise UnsupportedImageError(f"type {kind!r:.80}: send {RAW_TYPES[0]}, {FORM} or application/json")
    path = draft / UPLOAD
    sha256, name = await save_zip(request, path, limits)
    return JobInput(sha256, name, None, await asyncio.to_thread(_check_upload, path, limits))


def _check_upload(path: Path, limits: JobsConfig) -> int:
    with path.open("rb") as file:
        if file.read(64).lstrip().startswith(b"{"):
            raise MalformedRequestError("the body is JSON, not a zip; send it with Content-Type: application/json")
    return check_zip(path, limits)


def _find_source(source: str, limits: JobsConfig) -> tuple[str, int]:
    """Return the location of an allowed source, and the files of a zip; a zip there is checked like an uploaded one."""
    location = resolve_source(source, limits.sources)
    if "://" not in location and os.path.isfile(location):
        return location, check_zip(Path(location), limits)
    return location, 0


def resolve_source(source: str, prefixes: tuple[str, ...]) -> str:
    """Return the absolute location of a source that equals an allowed prefix or lies below one.

    Raises:
        ForbiddenSourceError: The source is outside every prefix, or could lead out of one (403).
    """
    forbidden = ForbiddenSourceError(
        f"source {source!r:.200}: not below a prefix of `jobs.sources`, which allows {', '.join(prefixes) or 'none'}"
    )
    # "." and ".." lead out of a prefix, *?[] are glob patterns, and # ? % carry connection settings in an address.
    # A local folder as an address (file:) would be read without regard to its links.
    if re.search(r"(^|/)\.\.?(/|$)|[\0*?\[\]#%\\]|^file:", source, re.IGNORECASE):
        raise forbidden
    location = source if "://" in source else os.path.realpath(source)
    for prefix in prefixes:
        top = (prefix if "://" in prefix else os.path.realpath(prefix)).rstrip("/")
        if location.rstrip("/") == top or location.startswith(f"{top}/"):
            return location
    raise forbidden
