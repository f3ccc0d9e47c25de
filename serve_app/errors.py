"""Everything that can go wrong, as types: each owns its HTTP status, its code and its title.

ServiceError                    500 internal
├── MalformedRequestError       400 malformed
├── UnauthorizedError           401 unauthorized
├── ForbiddenSourceError        403 forbidden_source
├── UnknownModelError           404 unknown_model
├── FeedbackOffError            404 feedback_off
├── UnknownJobError             404 unknown_job
├── JobsOffError                404 jobs_off
├── ConflictError               409 conflict
├── SlowBodyError               408 slow_body
├── TooLargeError               413 too_large
│   └── ImageTooLargeError      413 image_too_large
├── UnsupportedImageError       415 unsupported_image
├── InvalidParameterError       422 invalid_parameter
├── InvalidImageError           422 invalid_image
├── ArchiveError                422 invalid_archive
├── OverloadedError             503 overloaded           (retryable)
│   └── RateLimitedError        429 rate_limited         (retryable)
├── NotReadyError               503 not_ready            (retryable)
├── DeadlineExceededError       504 deadline_exceeded    (retryable)
├── EngineError                 an engine that cannot run here; fails a deployment, never a request
├── DatasetError                a folder of images that cannot be trained or evaluated on
├── SourceError                 images that a job cannot read (unreadable), or a folder that it cannot use
├── TrainingError               workers that failed together
└── WeightsError                weights that cannot be had; fails a deployment, never a request

Every error is built from one message, so it survives pickling between processes.
"""

from __future__ import annotations

import math
from typing import ClassVar


class ServiceError(Exception):
    """An error with a place in the HTTP contract; ``str(error)`` is the sentence shown."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False
    retry_after_s: int = 1  # if it is worth trying again


class MalformedRequestError(ServiceError):
    """The body is not what its content type promises."""

    status, code, title = 400, "malformed", "Malformed request"


class UnauthorizedError(ServiceError):
    """No API key, or one that is not valid."""

    status, code, title = 401, "unauthorized", "Unauthorized"


class UnknownModelError(ServiceError):
    """No model of that name is served here."""

    status, code, title = 404, "unknown_model", "Unknown model"


class FeedbackOffError(ServiceError):
    """Feedback is not kept by this service."""

    status, code, title = 404, "feedback_off", "No feedback kept"


class ForbiddenSourceError(ServiceError):
    """A job may not read from there."""

    status, code, title = 403, "forbidden_source", "Forbidden source"


class UnknownJobError(ServiceError):
    """The caller has no such job."""

    status, code, title = 404, "unknown_job", "Unknown job"


class JobsOffError(ServiceError):
    """This service takes no jobs."""

    status, code, title = 404, "jobs_off", "Jobs are switched off"


class ConflictError(ServiceError):
    """It does not go with what is there: another job under the same key, or one that has not ended."""

    status, code, title = 409, "conflict", "Conflict"


class SlowBodyError(ServiceError):
    """The body did not arrive within the time that a request may take."""

    status, code, title = 408, "slow_body", "Slow body"


class TooLargeError(ServiceError):
    """The body, one image in it or the number of images is over a limit."""

    status, code, title = 413, "too_large", "Too large"


class ImageTooLargeError(TooLargeError):
    """The header declares more pixels than the limit; nothing has been decoded."""

    code, title = "image_too_large", "Image too large"


class UnsupportedImageError(ServiceError):
    """The bytes are not an image in an accepted format."""

    status, code, title = 415, "unsupported_image", "Unsupported image"


class InvalidParameterError(ServiceError):
    """A parameter is unknown or has a value outside its range."""

    status, code, title = 422, "invalid_parameter", "Invalid parameter"


class InvalidImageError(ServiceError):
    """The bytes start like an image of an accepted format but cannot be decoded."""

    status, code, title = 422, "invalid_image", "Invalid image"


class ArchiveError(ServiceError):
    """A zip with something in it that no zip of images has."""

    status, code, title = 422, "invalid_archive", "Invalid archive"


class OverloadedError(ServiceError):
    """Too many requests wait already; this one was not started."""

    status, code, title, retryable = 503, "overloaded", "Overloaded", True

    def __init__(self, message: str, retry_after_s: float = 1) -> None:
        """Say when to come again, in seconds; at least one."""
        super().__init__(message)
        self.retry_after_s = max(1, math.ceil(retry_after_s))


class RateLimitedError(OverloadedError):
    """One caller sends more than its share; this request was not started."""

    status, code, title = 429, "rate_limited", "Too many requests"


class NotReadyError(ServiceError):
    """A stage of the graph is not up (yet)."""

    status, code, title, retryable = 503, "not_ready", "Not ready", True


class DeadlineExceededError(ServiceError):
    """No answer within the time allowed."""

    status, code, title, retryable = 504, "deadline_exceeded", "Deadline exceeded", True


class EngineError(ServiceError):
    """The configured way to run the model cannot be had on this machine."""


class DatasetError(ServiceError):
    """A folder of labeled images that cannot be used, and why."""

    code, title = "dataset", "Unusable data set"


class SourceError(ServiceError):
    """One of a job's images, all of them, or its folder of results cannot be used."""

    code, title = "unreadable", "Unreadable"


class TrainingError(ServiceError):
    """Workers that failed together, and why."""

    code, title = "training", "Training failed"


class WeightsError(ServiceError):
    """Weights that are missing, unreachable or not what they should be."""

    code, title = "weights", "Weights unavailable"
