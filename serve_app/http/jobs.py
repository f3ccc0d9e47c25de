"""Stage 1/3 · /v1/jobs: submit, look, cancel, take the results. supervisor.py has the work done."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response, StreamingResponse

from serve_app.batch import job_store as jobs
from serve_app.batch.export import MEDIA_TYPES, Format, Only, stream
from serve_app.batch.job_store import JobState
from serve_app.batch.results import Output
from serve_app.batch.zip_archive import check_zip
from serve_app.config import JobsConfig, describe
from serve_app.errors import (
    ConflictError,
    ForbiddenSourceError,
    InvalidParameterError,
    JobsOffError,
    MalformedRequestError,
    OverloadedError,
    UnsupportedImageError,
)
from serve_app.http.job_uploads import FORM, RAW_TYPES, save_zip
from serve_app.http.openapi import PROBLEMS
from serve_app.http.schemas import JobList
from serve_app.http.service import Service
from serve_app.http.uploads import LimitedRequest

PATH = "/v1/jobs"
JSON_BYTES = 64 * 1024
UPLOADS_AT_ONCE = 4  # of one ingress replica
ENDED = ("succeeded", "failed", "cancelled")


class Prefix(BaseModel):
    """The JSON body of a job that brings no images."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(min_length=1, max_length=1000, description="A prefix (`s3://…`) or folder.")


class Asked(BaseModel):
    """The query of a new job."""

    model_config = ConfigDict(extra="forbid")

    top_k: int | None = Field(None, ge=1, le=1000, description="Classes per image; more than there are gives all.")


ZIP = {"schema": {"type": "string", "format": "binary"}}
FILE = {"type": "object", "required": ["file"], "properties": {"file": ZIP["schema"]}, "additionalProperties": False}
BODY = {
    "required": True,
    "content": {
        "application/zip": ZIP,
        FORM: {"schema": FILE},
        "application/json": {"schema": Prefix.model_json_schema()},
    },
}
KEY_HEADER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Sent again with the same body, it gives the same job.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
}


def create_router(service: Service) -> APIRouter:
    """Build the routes.

    Args:
        service: Its ``jobs`` says whether and how, as it is now.
    """
    router = APIRouter(prefix=PATH, tags=["jobs"], responses={n: PROBLEMS[n] for n in (401, 404)})
    uploads = asyncio.Semaphore(UPLOADS_AT_ONCE)

    def tuning() -> JobsConfig:
        if service.config.jobs is None:
            raise JobsOffError("this service takes no batch jobs: set `jobs: {folder: …}` in the Ingress's user_config")
        return service.config.jobs

    def store() -> jobs.Store:
        return jobs.open_store(tuning().folder)

    @router.post(
        "",
        status_code=202,
        response_model=JobState,
        openapi_extra={"requestBody": BODY, "parameters": [KEY_HEADER]},
        responses={n: PROBLEMS[n] for n in (400, 403, 408, 409, 413, 415, 422, 429, 503)},
        summary="Classify a whole zip, or all below a prefix",
    )
    async def submit(request: Request, asked: Annotated[Asked, Query()]) -> Response:
        """Send a zip as the body, or as `file` of a form, or name a prefix in JSON; the answer says where to look.

        The job answers as `/v1/classify` would, whichever variant `X-Model` names. It goes on after a restart
        of the service. Online requests come first.
        """
        limits, found = tuning(), store()
        key = _key(request)
        choice = service.router.choose(request.headers.get("x-model"))
        model = await service.router.fetch_state(choice.variant)
        if len(await asyncio.to_thread(found.open_jobs)) >= limits.max_queued_jobs:
            raise OverloadedError(f"{limits.max_queued_jobs} jobs wait already, which is the most here; try again", 60)
        if uploads.locked():
            raise OverloadedError(f"{UPLOADS_AT_ONCE} uploads are under way, which is the most here; try again", 10)
        async with uploads:
            draft = await asyncio.to_thread(found.draft)
            try:
                body, source, location = await _receive(request, draft, limits)
                job = jobs.Request(
                    caller=request.state.caller,
                    source=source,
                    location=location,
                    body=body,
                    top_k=asked.top_k or service.config.top_k,
                    weights=model.weights,
                    engine=model.engine,
                    limits=service.config.limits,
                    model=model.card.ref,
                    created=jobs.now(),
                )
                name = await asyncio.to_thread(found.submit, draft, job, key)
            finally:
                await asyncio.to_thread(shutil.rmtree, draft, True)
        await service.start_jobs()
        state = await asyncio.to_thread(found.state, name)
        return _answer(state, 202, {"Location": f"{PATH}/{name}"})

    @router.get("", response_model=JobList, summary="Your jobs, the newest first")
    async def listing(request: Request) -> Response:
        now = tuning()
        limits = now.model_dump(include={"max_zip_bytes", "max_zip_entries", "max_unpacked_bytes"})
        mine = await asyncio.to_thread(store().jobs, request.state.caller)
        return _answer(JobList(jobs=mine, sources=list(now.sources), limits=limits))

    @router.get("/{job}", response_model=JobState, summary="How far a job is")
    async def look(request: Request, job: str) -> Response:
        return _answer(await asyncio.to_thread(store().state, job, request.state.caller))

    @router.delete("/{job}", response_model=JobState, summary="Cancel a job; one that has ended stays as it is")
    async def cancel(request: Request, job: str) -> Response:
        found = store()
        await asyncio.to_thread(found.request, job, request.state.caller)
        await asyncio.to_thread(found.cancel, job)
        await service.start_jobs()
        return _answer(await asyncio.to_thread(found.state, job))

    @router.get(
        "/{job}/results",
        responses={
            200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}},
            **{n: PROBLEMS[n] for n in (409, 422)},
        },
        response_class=Response,
        summary="The rows of a job that has ended, as a file",
    )
    async def results(
        request: Request,
        job: str,
        format: Annotated[Format, Query(description="Of the file.")] = "json",
        only: Annotated[Only, Query(description="Which rows.")] = "all",
    ) -> Response:
        """Of a job that was cancelled or failed: what it had done."""
        found = store()
        state = await asyncio.to_thread(found.state, job, request.state.caller)
        if state.status not in ENDED:
            raise ConflictError(f"job {job} has not ended: it is {state.status}")
        output = Output(str(found.results(job)))
        headers = {"Content-Disposition": f'attachment; filename="{job}.{format}"'}
        return StreamingResponse(
            stream(output, format, only, state.top_k), headers=headers, media_type=MEDIA_TYPES[format]
        )

    return router


async def _receive(request: Request, draft: Path, limits: JobsConfig) -> tuple[str, str, str | None]:
    """Read a job's body: its hash, what to call it, and what to read unless it is the zip in the draft."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        location = allowed(await _read_source(request), limits.sources)
        return hashlib.sha256(location.encode()).hexdigest(), location, location
    if kind not in (*RAW_TYPES, FORM):
        raise UnsupportedImageError(f"content type {kind!r:.80}: send {RAW_TYPES[0]}, {FORM} or application/json")
    path = draft / jobs.UPLOAD
    body, name = await save_zip(request, path, limits)
    await asyncio.to_thread(check_zip, path, limits)
    return body, name, None


async def _read_source(request: Request) -> str:
    try:
        body = await LimitedRequest(request.scope, request.receive, JSON_BYTES).body()
        return Prefix.model_validate_json(body).source
    except ValidationError as error:
        raise MalformedRequestError(f"the JSON body: {describe(error, Prefix)}") from None


def allowed(source: str, prefixes: tuple[str, ...]) -> str:
    """Give a source back that is one of the prefixes or below one.

    Raises:
        ForbiddenSourceError: It is not (403).
    """
    outside = ForbiddenSourceError(
        f"source {source!r:.200}: not below a prefix that is allowed here; there is {', '.join(prefixes) or 'none'}"
    )
    if re.search(r"(^|/)\.\.?(/|$)|[\0*?\[\]#%\\]", source):  # a way out, a pattern, or settings of a connection
        raise outside
    place = source if "://" in source else str(Path(source).resolve())
    for prefix in prefixes:
        top = (prefix if "://" in prefix else str(Path(prefix).resolve())).rstrip("/")
        if place.rstrip("/") == top or place.startswith(f"{top}/"):
            return place
    raise outside


def _key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= 200:
        raise InvalidParameterError(f"Idempotency-Key: {len(key)} characters; 1 to 200 are possible")
    return key


def _answer(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers, "application/json")
