"""Batch jobs for programs without an event loop: the operations of job_operations.py."""

from __future__ import annotations

from serve_client.job_operations import JobOperations
from serve_client.transport import blocking, blocking_iterator


class Jobs:
    """The batch jobs of one caller. A job is named by its id or its state."""

    def __init__(self, operations: JobOperations) -> None:
        self._operations = operations

    submit = blocking(JobOperations.submit)
    submit_source = blocking(JobOperations.submit_source)
    list = blocking(JobOperations.list)
    get = blocking(JobOperations.get)
    cancel = blocking(JobOperations.cancel)
    wait = blocking(JobOperations.wait)
    results = blocking_iterator(JobOperations.results)
    download = blocking(JobOperations.download)
