"""Batch jobs: submit, look at, wait, cancel, read and download results."""

from __future__ import annotations

import functools
import io
import os
import uuid
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import IO, Any, Literal
from urllib.parse import quote

from serve_client.errors import JobTimeoutError
from serve_client.from_json import from_json
from serve_client.lines import json_lines
from serve_client.progress import progress_bar
from serve_client.results import JobList, JobRow, JobState
from serve_client.retries import Deadline
from serve_client.session import Request, Session

PATH = "/v1/jobs"
UPLOAD_TIMEOUT_S = 3600.0  # the service bounds an upload itself, and ends one that stands still
FIRST_POLL_S, MAX_POLL_S, POLL_GROWTH = 0.5, 5.0, 1.5
Rows = Literal["all", "ok", "failed"]
Format = Literal["json", "jsonl", "csv", "parquet"]


class JobOperations:
    """The batch jobs of one caller. A job is named by its id or its state."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def submit(
        self,
        archive: str | os.PathLike[str] | bytes | IO[bytes],
        *,
        top_k: int | None = None,
        embed: bool = False,
        head: str | None = None,
        model: str | None = None,
        idempotency_key: str | None = None,
        timeout: float = UPLOAD_TIMEOUT_S,
    ) -> JobState:
        """Upload a zip and start a job over its images.

        Each call sends an Idempotency-Key, so that a repetition after a lost response finds the job instead of
        starting a second one.

        Args:
            archive: Path, bytes or seekable binary file object of a zip.
            top_k: Classes per image; by default the service's.
            embed: Add the embedding of each image to the results; CSV leaves it out.
            head: Name of a head whose classes the results have in place of the model's.
            model: Variant of the model.
            idempotency_key: Names the job across calls; by default each call starts a job of its own.
            timeout: Time for the upload with its repetitions, in seconds.

        Raises:
            OSError: The file cannot be opened.
            InvalidArchiveError: The zip has an entry that is not accepted; ``TooLargeError``: it is too large.
        """
        with ExitStack() as stack:
            file: IO[bytes]
            if isinstance(archive, str | os.PathLike):
                path = archive
                file = stack.enter_context(await self._session.transport.call(lambda: open(path, "rb")))  # noqa: SIM115 # the stack closes it
            else:
                file = io.BytesIO(archive) if isinstance(archive, bytes) else archive
            size = file.seek(0, os.SEEK_END)
            headers = {"Content-Type": "application/zip", "Content-Length": str(size)}
            return await self._start({"headers": headers}, file, top_k, embed, head, model, idempotency_key, timeout)

    async def submit_source(
        self,
        source: str,
        *,
        top_k: int | None = None,
        embed: bool = False,
        head: str | None = None,
        model: str | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> JobState:
        """Start a job over a folder of the service or a bucket prefix (``s3://…``) that its settings allow.

        The other arguments are those of ``submit``.

        Raises:
            ForbiddenSourceError: The settings do not allow this source.
        """
        return await self._start(
            {"json": {"source": source}}, None, top_k, embed, head, model, idempotency_key, timeout
        )

    async def list(self) -> JobList:
        """Return the caller's jobs, the newest first, the allowed sources, and the limits of a zip."""
        return from_json(JobList, (await self._session.send(Request("GET", PATH))).json())

    async def get(self, job: JobState | str) -> JobState:
        """Return a job's state and progress."""
        return from_json(JobState, (await self._session.send(Request("GET", _path(job)))).json())

    async def cancel(self, job: JobState | str) -> JobState:
        """Cancel a job; the images that are done stay available."""
        return from_json(JobState, (await self._session.send(Request("DELETE", _path(job)))).json())

    async def wait(self, job: JobState | str, *, timeout: float | None = None, progress: bool = False) -> JobState:
        """Wait until a job has ended, however it ended; return its state.

        Args:
            job: The job.
            timeout: Longest wait, in seconds; None waits as long as the job takes.
            progress: Show a progress bar, which needs tqdm.

        Raises:
            JobTimeoutError: The job has not ended in time; it goes on.
        """
        deadline = Deadline(float("inf") if timeout is None else timeout)
        poll_s = FIRST_POLL_S
        with progress_bar(progress) as bar:
            while True:
                state = await self.get(job)
                counts = state.progress
                bar.show(counts.done, counts.total, f"{state.status}, failed={counts.failed}")
                if state.ended:
                    return state
                if deadline.left_s() <= 0:
                    raise JobTimeoutError(
                        f"job {state.id} is {state.status} after {timeout} s ({counts.done} of {counts.total} images)"
                    )
                await self._session.transport.sleep(max(0.0, min(poll_s, deadline.left_s())))
                poll_s = min(poll_s * POLL_GROWTH, MAX_POLL_S)

    async def results(self, job: JobState | str, *, only: Rows = "all") -> AsyncGenerator[JobRow, None]:
        """Yield the results of a job that has ended, one row per image.

        Args:
            job: The job.
            only: ``ok`` yields classified images, ``failed`` those with an error.

        Raises:
            ConflictError: The job has not ended.
        """
        async with aclosing(json_lines(self._pieces(job, "jsonl", only))) as lines:
            async for line in lines:
                yield from_json(JobRow, line)

    async def download(
        self, job: JobState | str, to: str | os.PathLike[str], *, format: Format = "parquet", only: Rows = "all"
    ) -> None:
        """Write the results of a job that has ended to a file, which gets its name when it is complete.

        Args:
            job: The job.
            to: Path of the file.
            format: ``json``, ``jsonl``, ``csv`` or ``parquet``.
            only: As of ``results``.
        """
        path, call = os.fspath(to), self._session.transport.call
        partial = f"{path}.part"
        with await call(lambda: open(partial, "wb")) as file:
            try:
                async with aclosing(self._pieces(job, format, only)) as pieces:
                    async for piece in pieces:
                        await call(functools.partial(file.write, piece))
            except BaseException:
                os.unlink(partial)
                raise
        await call(lambda: os.replace(partial, path))

    def _pieces(self, job: JobState | str, format: Format, only: Rows) -> AsyncGenerator[bytes, None]:
        request = Request("GET", f"{_path(job)}/results", {"params": {"format": format, "only": only}})
        return self._session.pieces(request, self._session.retries())

    async def _start(
        self,
        body: dict[str, Any],
        upload: IO[bytes] | None,
        top_k: int | None,
        embed: bool,
        head: str | None,
        model: str | None,
        key: str | None,
        timeout_s: float | None,
    ) -> JobState:
        headers = {**body.get("headers", {}), "Idempotency-Key": key or uuid.uuid4().hex}
        if model is not None:
            headers["X-Model"] = model
        params = {"top_k": top_k, "embed": "true" if embed else None, "head": head}
        params = {name: value for name, value in params.items() if value is not None}
        options = {**body, "headers": headers, "params": params}
        reply = await self._session.send(Request("POST", PATH, options, upload), timeout_s)
        return from_json(JobState, reply.json())


def _path(job: JobState | str) -> str:
    return f"{PATH}/{quote(job if isinstance(job, str) else job.id, safe='')}"
