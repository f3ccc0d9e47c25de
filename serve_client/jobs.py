"""Batch jobs for programs without an event loop: the operations of job_operations.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO

from serve_client.job_operations import UPLOAD_TIMEOUT_S, Format, JobOperations, Rows
from serve_client.results import JobList, JobRow, JobState
from serve_client.transport import iterate, run


class Jobs:
    """The batch jobs of one caller. A job is named by its id or its state."""

    def __init__(self, operations: JobOperations) -> None:
        self._operations = operations

    def submit(
        self,
        archive: str | os.PathLike[str] | bytes | IO[bytes],
        *,
        top_k: int | None = None,
        embed: bool = False,
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
            model: Variant of the model.
            idempotency_key: Names the job across calls; by default each call starts a job of its own.
            timeout: Time for the upload with its repetitions, in seconds.

        Raises:
            OSError: The file cannot be opened.
            InvalidArchiveError: The zip has an entry that is not accepted; ``TooLargeError``: it is too large.
        """
        operation = self._operations.submit
        return run(
            operation(archive, top_k=top_k, embed=embed, model=model, idempotency_key=idempotency_key, timeout=timeout)
        )

    def submit_source(
        self,
        source: str,
        *,
        top_k: int | None = None,
        embed: bool = False,
        model: str | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> JobState:
        """Start a job over a folder of the service or a bucket prefix (``s3://…``) that its settings allow.

        The other arguments are those of ``submit``.

        Raises:
            ForbiddenSourceError: The settings do not allow this source.
        """
        operation = self._operations.submit_source
        return run(
            operation(source, top_k=top_k, embed=embed, model=model, idempotency_key=idempotency_key, timeout=timeout)
        )

    def list(self) -> JobList:
        """Return the caller's jobs, the newest first, the allowed sources, and the limits of a zip."""
        return run(self._operations.list())

    def get(self, job: JobState | str) -> JobState:
        """Return a job's state and progress."""
        return run(self._operations.get(job))

    def cancel(self, job: JobState | str) -> JobState:
        """Cancel a job; the images that are done stay available."""
        return run(self._operations.cancel(job))

    def wait(self, job: JobState | str, *, timeout: float | None = None, progress: bool = False) -> JobState:
        """Wait until a job has ended, however it ended; return its state.

        Args:
            job: The job.
            timeout: Longest wait, in seconds; None waits as long as the job takes.
            progress: Show a progress bar, which needs tqdm.

        Raises:
            JobTimeoutError: The job has not ended in time; it goes on.
        """
        return run(self._operations.wait(job, timeout=timeout, progress=progress))

    def results(self, job: JobState | str, *, only: Rows = "all") -> Iterator[JobRow]:
        """Yield the results of a job that has ended, one row per image.

        Args:
            job: The job.
            only: ``ok`` yields classified images, ``failed`` those with an error.

        Raises:
            ConflictError: The job has not ended.
        """
        return iterate(self._operations.results(job, only=only))

    def download(
        self, job: JobState | str, to: str | os.PathLike[str], *, format: Format = "parquet", only: Rows = "all"
    ) -> None:
        """Write the results of a job that has ended to a file, which gets its name when it is complete.

        Args:
            job: The job.
            to: Path of the file.
            format: ``json``, ``jsonl``, ``csv`` or ``parquet``.
            only: As of ``results``.
        """
        run(self._operations.download(job, to, format=format, only=only))
