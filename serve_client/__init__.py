"""Client of the image-classification service serve-app.

Images and jobs go in, dataclasses come out, and errors are exceptions. The files, in the order in which a call meets
them: client.py, jobs.py, heads.py and async_client.py, operations.py, job_operations.py and head_operations.py,
images.py, batches.py, session.py, retries.py, transport.py, lines.py, parse.py and from_json.py, results.py and
head_results.py, errors.py; progress.py shows bars.
"""

from __future__ import annotations

from serve_client.async_client import AsyncClient
from serve_client.client import Client
from serve_client.errors import (
    JobTimeoutError,
    NoResponseError,
    ProblemError,
    ResponseTimeoutError,
    ServeError,
    UnexpectedResponseError,
    UnreadableImageError,
)
from serve_client.head_results import Head
from serve_client.images import ImageInput
from serve_client.results import ImageResult, JobRow, JobState, Prediction

# The names for callers; the exception of each code is in serve_client.errors.
__all__ = [
    "AsyncClient",
    "Client",
    "Head",
    "ImageInput",
    "ImageResult",
    "JobRow",
    "JobState",
    "JobTimeoutError",
    "NoResponseError",
    "Prediction",
    "ProblemError",
    "ResponseTimeoutError",
    "ServeError",
    "UnexpectedResponseError",
    "UnreadableImageError",
]
