"""Routes of /v1/jobs: submit a batch job, look at it, cancel it, download its results.

The supervisor (serve_app/batch/supervisor.py) runs the jobs.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from pathlib import Path
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse

from serve_app.batch.export import MEDIA_TYPES, Format, RowFilter, stream
from serve_app.batch.job_store import UPLOAD, JobRequest, JobState, JobStore, open_store
from serve_app.batch.results import ResultsFolder
from serve_app.batch.zip_archive import check_zip
from serve_app.config import FrozenModel, JobsConfig
from serve_app.errors import (
    ConflictError,
    ForbiddenSourceError,
    JobsOffError,
    OverloadedError,
    UnsupportedImageError,
)
from serve_app.http.job_owner import check_owner, read_owner, scoped_key, visible_jobs
from serve_app.http.job_uploads import FORM, RAW_TYPES, save_zip
from serve_app.http.openapi import PROBLEMS
from serve_app.http.schemas import JobList
from serve_app.http.service import Service
from serve_app.http.uploads import LimitedRequest, content_type, read_json

PATH = "/v1/jobs"
MAX_JSON_BYTES = 64 * 1024
MAX_UPLOADS = 4  # in flight at one ingress replica
ENDED = ("succeeded", "failed", "cancelled")


class JobSource(FrozenModel):
    """The JSON body of a job that reads a folder or bucket instead of a zip."""

    source: str = Field(min_length=1, max_length=1000, description="A bucket prefix (`s3://…`) or a folder.")


class JobParameters(FrozenModel):
    """The query of a new job."""

    top_k: int | None = Field(None, ge=1, le=1000, description="Classes per image, at most all that the model has.")


class JobInput(NamedTuple):
    """The images of a new job."""

    sha256: str  # of the zip, or of the location
    name: str  # what clients see as the source
    location: str | None  # folder or bucket prefix to read; None for a zip, which is in the draft folder


ZIP = {"schema": {"type": "string", "format": "binary"}}
FILE = {"type": "object", "required": ["file"], "properties": {"file": ZIP["schema"]}, "additionalProperties": False}
BODY = {
    "required": True,
    "content": {
        "application/zip": ZIP,
        FORM: {"schema": FILE},
        "application/json": {"schema": JobSource.model_json_schema()},
    },
}
Key = Header(
    alias="Idempotency-Key",
    description="A request with the same key and body returns the same job; another body is a conflict (409).",
    min_length=1,
    max_length=200,
)


def create_router(service: Service) -> APIRouter:
    """Build the routes of /v1/jobs; without the setting ``jobs`` every route answers 404."""
    router = APIRouter(prefix=PATH, tags=["jobs"], responses={n: PROBLEMS[n] for n in (401, 404)})
    uploads = asyncio.Semaphore(MAX_UPLOADS)

    def config() -> JobsConfig:
        if service.config.jobs is None:
            raise JobsOffError("this service takes no batch jobs: set `jobs: {folder: …}` in the Ingress's user_config")
        return service.config.jobs

    def store() -> JobStore:
        return open_store(config().folder)

    @router.post(
        "",
        status_code=202,
        response_model=JobState,
        openapi_extra={"requestBody": BODY},
        responses={n: PROBLEMS[n] for n in (400, 403, 408, 409, 413, 415, 422, 429, 503)},
        summary="Classify all images of a zip, folder or bucket prefix",
    )
    async def submit(
        request: Request, parameters: Annotated[JobParameters, Query()], key: Annotated[str | None, Key] = None
    ) -> Response:
        """Submit a zip as the body or as the form field `file`, or name a source in JSON.

        The response's `Location` header is the job's URL. The job classifies with the weights and precision that
        serve now, as `/v1/classify` does; `X-Model` names a variant. The job survives a restart of the service.
        Online requests come first.

        A client that serves several people names one of them in `X-Job-Owner`, at most 128 of `[A-Za-z0-9_.-]`;
        requests with this header see only that owner's jobs.
        """
        limits, jobs, owner = config(), store(), read_owner(request)
        choice = service.router.choose(request.headers.get("x-model"))
        model = await service.router.fetch_state(choice.variant)
        if len(await asyncio.to_thread(jobs.open_jobs)) >= limits.max_queued_jobs:
            raise OverloadedError(
                f"{limits.max_queued_jobs} jobs are queued already (limit: `jobs.max_queued_jobs`); retry later", 60
            )
        if uploads.locked():
            raise OverloadedError(f"{MAX_UPLOADS} uploads are in flight already; retry later", 10)
        async with uploads:
            draft = await asyncio.to_thread(jobs.draft)
            try:
                images = await _receive(request, draft, limits)
                job_request = JobRequest(
                    caller=request.state.caller,
                    owner=owner,
                    source=images.name,
                    location=images.location,
                    body_sha256=images.sha256,
                    top_k=parameters.top_k or service.config.top_k,
                    weights=model.weights,
                    engine=model.engine,
                    limits=service.config.limits,
                    model=model.card.ref,
                )
                job = await asyncio.to_thread(jobs.submit, draft, job_request, scoped_key(key, owner))
            finally:
                await asyncio.to_thread(shutil.rmtree, draft, True)
        await service.start_jobs()
        state = await asyncio.to_thread(jobs.state, job, request.state.caller)
        return _json(state, 202, {"Location": f"{PATH}/{job}"})

    @router.get("", response_model=JobList, summary="List your jobs, the newest first")
    async def list_jobs(request: Request) -> Response:
        """List the caller's jobs, the sources that a job may read, and the limits of a zip."""
        current = config()
        limits = current.model_dump(include={"max_zip_bytes", "max_zip_entries", "max_unpacked_bytes"})
        jobs = await asyncio.to_thread(visible_jobs, store(), request)
        return _json(JobList(jobs=jobs, sources=list(current.sources), limits=limits))

    @router.get("/{job}", response_model=JobState, summary="Return a job's status and progress")
    async def get_job(request: Request, job: str) -> Response:
        await asyncio.to_thread(check_owner, store(), job, request)
        return _json(await asyncio.to_thread(store().state, job, request.state.caller))

    @router.delete("/{job}", response_model=JobState, summary="Cancel a job")
    async def cancel(request: Request, job: str) -> Response:
        """Cancel a queued or running job; a job that has ended keeps its status. Results so far stay available."""
        jobs = store()
        await asyncio.to_thread(jobs.request, job, request.state.caller)
        await asyncio.to_thread(check_owner, jobs, job, request)
        await asyncio.to_thread(jobs.cancel, job)
        await service.start_jobs()
        return _json(await asyncio.to_thread(jobs.state, job))

    @router.get(
        "/{job}/results",
        responses={
            200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}},
            **{n: PROBLEMS[n] for n in (409, 422)},
        },
        response_class=Response,
        summary="Download the results of a job that has ended",
    )
    async def results(
        request: Request,
        job: str,
        format: Annotated[Format, Query(description="Format of the file.")] = "json",
        only: Annotated[RowFilter, Query(description="Classified images (`ok`) or errors (`failed`).")] = "all",
    ) -> Response:
        """Download one row per image. A cancelled or failed job has rows for the images it completed."""
        jobs = store()
        await asyncio.to_thread(check_owner, jobs, job, request)
        state = await asyncio.to_thread(jobs.state, job, request.state.caller)
        if state.status not in ENDED:
            raise ConflictError(f"job {job} is {state.status}; download its results once it has ended")
        folder = ResultsFolder(str(jobs.results_path(job)))
        return StreamingResponse(
            stream(folder, format, only, state.top_k),
            headers={"Content-Disposition": f'attachment; filename="{job}.{format}"'},
            media_type=MEDIA_TYPES[format],
        )

    return router


async def _receive(request: Request, draft: Path, limits: JobsConfig) -> JobInput:
    """Read the body of a new job; a zip goes to the draft folder."""
    kind = content_type(request)
    if kind == "application/json":
        limited = LimitedRequest(request.scope, request.receive, MAX_JSON_BYTES)
        location = resolve_source((await read_json(limited, JobSource)).source, limits.sources)
        return JobInput(hashlib.sha256(location.encode()).hexdigest(), location, location)
    if kind not in (*RAW_TYPES, FORM):
        raise UnsupportedImageError(f"type {kind!r:.80}: send {RAW_TYPES[0]}, {FORM} or application/json")
    path = draft / UPLOAD
    sha256, name = await save_zip(request, path, limits)
    await asyncio.to_thread(check_zip, path, limits)
    return JobInput(sha256, name, None)


def resolve_source(source: str, prefixes: tuple[str, ...]) -> str:
    """Return the absolute location of a source that equals an allowed prefix or lies below one.

    Raises:
        ForbiddenSourceError: The source is outside every prefix, or could lead out of one (403).
    """
    forbidden = ForbiddenSourceError(
        f"source {source!r:.200}: not below a prefix of `jobs.sources`, which allows {', '.join(prefixes) or 'none'}"
    )
    # "." and ".." lead out of a prefix, *?[] are glob patterns, and # ? % carry connection settings in an address.
    if re.search(r"(^|/)\.\.?(/|$)|[\0*?\[\]#%\\]", source):
        raise forbidden
    location = source if "://" in source else str(Path(source).resolve())
    for prefix in prefixes:
        top = (prefix if "://" in prefix else str(Path(prefix).resolve())).rstrip("/")
        if location.rstrip("/") == top or location.startswith(f"{top}/"):
            return location
    raise forbidden


def _json(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers, "application/json")
