"""Routes of /v1/jobs: submit a batch job, look at it, cancel it, download its results.

The supervisor (serve_app/batch/supervisor.py) runs the jobs.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from typing import Annotated, ParamSpec, TypeVar

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse

from serve_app.batch.export import MEDIA_TYPES, Format, RowFilter, stream
from serve_app.batch.job_records import HEAD, SHOWN, JobProgress, JobRequest, JobState
from serve_app.batch.job_store import JobStore, open_store
from serve_app.batch.results import ResultsFolder
from serve_app.config import JobsConfig
from serve_app.errors import (
    ConflictError,
    JobsOffError,
    NotReadyError,
    ServiceError,
)
from serve_app.http.heads.access import HeadAccess
from serve_app.http.heads.use import HeadUses
from serve_app.http.jobs.errors import hide_server_paths
from serve_app.http.jobs.heads import check_one_head, head_of
from serve_app.http.jobs.inputs import JobSource, receive_input
from serve_app.http.jobs.owner import read_owner, scoped_key
from serve_app.http.jobs.quota import UploadSlots, check_queue
from serve_app.http.jobs.uploads import FORM
from serve_app.http.openapi import PROBLEMS
from serve_app.http.schemas import JobList
from serve_app.http.service import Service
from serve_app.http.unknown_parameters import note_unknown_query
from serve_app.http.uploads import RequestModel

PATH = "/v1/jobs"
ENDED = ("succeeded", "failed", "cancelled")
P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("serve_app")


class JobParameters(RequestModel):
    """The query of a new job."""

    top_k: int | None = Field(None, ge=1, le=1000, description="Classes per image, at most all that the model has.")
    head: str | None = Field(None, max_length=100, description="A taught head, whose classes the results name.")
    embed: bool = Field(False, description="Add the embedding of each image, 512 numbers, to the results; not to CSV.")


ZIP = {"schema": {"type": "string", "format": "binary"}}
FILE = {"type": "object", "required": ["file"], "properties": {"file": ZIP["schema"]}}
BODY = {
    "required": True,
    "content": {
        "application/zip": ZIP,
        "application/octet-stream": ZIP,
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


def create_router(service: Service, access: HeadAccess, heads: HeadUses) -> APIRouter:
    """Build the routes of /v1/jobs; without the setting ``jobs`` every route answers 404."""
    router = APIRouter(prefix=PATH, tags=["jobs"], responses={n: PROBLEMS[n] for n in (401, 404, 503)})
    uploads = UploadSlots()

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
        responses={n: PROBLEMS[n] for n in (400, 403, 408, 409, 413, 414, 415, 422, 429, 503)},
        summary="Classify all images of a zip, folder or bucket prefix",
    )
    async def submit_job(
        request: Request, parameters: Annotated[JobParameters, Query()], key: Annotated[str | None, Key] = None
    ) -> Response:
        """Submit a zip as the body or as the only file of a form, or name a source in JSON.

        The response's `Location` header is the job's URL. The job classifies with the weights and precision that
        serve now, as `/v1/classify` does; `X-Model` names a variant. The job survives a restart of the service.
        Online requests come first. Unknown parameters are ignored and named in the header `X-Warnings`.

        A client that serves several people names one of them in `X-Job-Owner`, at most 128 of `[A-Za-z0-9_.-]`;
        requests with this header see only that owner's jobs.
        """
        note_unknown_query(request, JobParameters.model_fields)
        limits, jobs, owner = config(), store(), read_owner(request)
        choice = service.router.choose(request.headers.get("x-model"))
        caller: str | None = request.state.caller
        if use := await heads.of(parameters.head, caller):
            check_one_head(use)
            choice = heads.variant(use, choice)
        model = await service.router.fetch_state(choice.variant)
        head = head_of(use, model.card.ref) if use else None
        await _in_store(check_queue, jobs, caller, limits)
        with uploads.take(caller):
            draft = await _in_store(jobs.draft)
            try:
                images = await receive_input(request, draft, limits)
                if head:
                    await _in_store(access.heads.store.copy, head[1], draft / HEAD)
                job_request = JobRequest(
                    caller=caller,
                    owner=owner,
                    source=images.name,
                    location=images.location,
                    body_sha256=images.sha256,
                    top_k=parameters.top_k or service.config.top_k,
                    embed=parameters.embed,
                    head=head[0] if head else None,
                    weights=model.weights,
                    engine=model.engine,
                    limits=service.config.limits,
                    model=model.card.ref,
                )
                await _in_store(check_queue, jobs, caller, limits)  # other uploads may have been faster
                job = await _in_store(jobs.submit, draft, job_request, scoped_key(key, owner))
                if not draft.exists():  # the draft became the job; with a known Idempotency-Key it stays a draft
                    request.state.charge.take_images(images.files)
            finally:
                await asyncio.to_thread(shutil.rmtree, draft, True)
        await _start_jobs(service)
        try:
            state = await _in_store(_visible_state, jobs, job)
        except ServiceError as error:  # the job exists, so the client gets its id
            log.error("job %s: its state cannot be read: %s", job, error)
            shown = job_request.model_dump(include=SHOWN)
            state = JobState(id=job, status="queued", **shown, progress=JobProgress())
        return _json(state, 202, {"Location": f"{PATH}/{job}"})

    @router.get("", response_model=JobList, summary="List your jobs, the newest first")
    async def list_jobs(request: Request) -> Response:
        """List the caller's jobs, the sources that a job may read, and the limits of a zip."""
        current = config()
        limits = current.model_dump(include={"max_zip_bytes", "max_zip_entries", "max_unpacked_bytes"})
        visible = await _in_store(_visible_states, store(), request.state.caller, read_owner(request))
        return _json(JobList(jobs=visible, sources=list(current.sources), limits=limits))

    @router.get("/{job}", response_model=JobState, summary="Return a job's status and progress")
    async def get_job(request: Request, job: str) -> Response:
        return _json(await _in_store(_visible_state, store(), job, request.state.caller, read_owner(request)))

    @router.delete("/{job}", response_model=JobState, summary="Cancel a job")
    async def cancel_job(request: Request, job: str) -> Response:
        """Cancel a queued or running job; a job that has ended keeps its status. Results so far stay available."""
        jobs = store()
        await _in_store(jobs.state, job, request.state.caller, read_owner(request))
        await _in_store(jobs.cancel, job)
        await _start_jobs(service)
        return _json(await _in_store(_visible_state, jobs, job))

    @router.get(
        "/{job}/results",
        responses={
            200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}},
            **{n: PROBLEMS[n] for n in (409, 422)},
        },
        response_class=Response,
        summary="Download the results of a job that has ended",
    )
    async def get_job_results(
        request: Request,
        job: str,
        format: Annotated[Format, Query(description="Format of the file.")] = "json",
        only: Annotated[RowFilter, Query(description="Classified images (`ok`) or errors (`failed`).")] = "all",
    ) -> Response:
        """Download one row per image. A cancelled or failed job has rows for the images it completed."""
        note_unknown_query(request, ("format", "only"))
        jobs = store()
        await _in_store(jobs.request, job, request.state.caller, read_owner(request))
        state = await _in_store(jobs.state, job)
        if state.status not in ENDED:
            raise ConflictError(f"job {job} is {state.status}; download its results once it has ended")
        folder = ResultsFolder(str(jobs.results_path(job)))
        return StreamingResponse(
            stream(folder, format, only, state.top_k, state.status == "succeeded", state.embed, bool(state.head)),
            headers={"Content-Disposition": f'attachment; filename="{job}.{format}"'},
            media_type=MEDIA_TYPES[format],
        )

    return router


def _visible_states(jobs: JobStore, caller: str | None, owner: str | None) -> list[JobState]:
    return [hide_server_paths(state, jobs) for state in jobs.jobs(caller, owner)]


def _visible_state(jobs: JobStore, job: str, caller: str | None = None, owner: str | None = None) -> JobState:
    return hide_server_paths(jobs.state(job, caller, owner), jobs)


async def _in_store(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a method of the job store in a thread; raise NotReadyError (503) if the folder of jobs cannot be used."""
    try:
        return await asyncio.to_thread(call, *args, **kwargs)
    except OSError as error:
        log.error("jobs: the folder cannot be used: %s", error)
        reason = error.strerror or type(error).__name__
        raise NotReadyError(f"the folder of jobs (`jobs.folder`) cannot be used now: {reason}; retry later") from error


async def _start_jobs(service: Service) -> None:
    """Start work on open jobs; what the client asked for is on disk already, so no error may hide it."""
    try:
        await service.start_jobs()
    except Exception:
        log.exception("jobs: cannot be started now")


def _json(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers, "application/json")
