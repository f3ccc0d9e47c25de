"""Every error as a type. An error that a client can get owns its HTTP status, code and title.

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
├── EngineError                 a runtime that cannot run here; fails a deployment, never a request
├── DatasetError                labeled images that cannot be used for training or evaluation
├── SourceError                 images that a batch job cannot read, or a results folder that it cannot write
├── TrainingError               training workers that failed
└── WeightsError                weights that cannot be loaded; fails a deployment, never a request

Every error passes its arguments to the base constructor, so it survives pickling between processes.
"""

from __future__ import annotations

import math
from typing import ClassVar


class ServiceError(Exception):
    """Base of all errors; ``str(error)`` is the sentence that the user reads.

    Attributes:
        status: HTTP status.
        code: Stable name of the kind of error.
        title: Short text for people.
        retryable: Whether the same request can succeed later.
        retry_after_s: Seconds until a retry makes sense.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False
    retry_after_s: int = 1


class MalformedRequestError(ServiceError):
    """The body does not match its content type."""

    status, code, title = 400, "malformed", "Malformed request"


class UnauthorizedError(ServiceError):
    """The API key is missing or unknown."""

    status, code, title = 401, "unauthorized", "Unauthorized"


class UnknownModelError(ServiceError):
    """This service has no model of that name."""

    status, code, title = 404, "unknown_model", "Unknown model"


class FeedbackOffError(ServiceError):
    """Feedback is switched off."""

    status, code, title = 404, "feedback_off", "Feedback is switched off"


class ForbiddenSourceError(ServiceError):
    """A job may not read from this source."""

    status, code, title = 403, "forbidden_source", "Forbidden source"


class UnknownJobError(ServiceError):
    """The caller has no job of that id."""

    status, code, title = 404, "unknown_job", "Unknown job"


class JobsOffError(ServiceError):
    """Batch jobs are switched off."""

    status, code, title = 404, "jobs_off", "Jobs are switched off"


class ConflictError(ServiceError):
    """The request conflicts with a job: another one under the same key, or one that has not ended."""

    status, code, title = 409, "conflict", "Conflict"


class SlowBodyError(ServiceError):
    """The body did not arrive in time."""

    status, code, title = 408, "slow_body", "Slow body"


class TooLargeError(ServiceError):
    """The body, an image in it or the number of images exceeds a limit."""

    status, code, title = 413, "too_large", "Too large"


class ImageTooLargeError(TooLargeError):
    """The image's header declares more pixels than the limit; nothing has been decoded."""

    code, title = "image_too_large", "Image too large"


class UnsupportedImageError(ServiceError):
    """The content is not an image in an accepted format."""

    status, code, title = 415, "unsupported_image", "Unsupported image"


class InvalidParameterError(ServiceError):
    """A parameter is unknown or its value is out of range."""

    status, code, title = 422, "invalid_parameter", "Invalid parameter"


class InvalidImageError(ServiceError):
    """The content starts like an image of an accepted format but cannot be decoded."""

    status, code, title = 422, "invalid_image", "Invalid image"


class ArchiveError(ServiceError):
    """The zip contains an entry that is not accepted."""

    status, code, title = 422, "invalid_archive", "Invalid archive"


class OverloadedError(ServiceError):
    """The service is overloaded; the request was not started."""

    status, code, title, retryable = 503, "overloaded", "Overloaded", True

    def __init__(self, message: str, retry_after_s: float = 1) -> None:
        """Set when a retry makes sense, in seconds; at least one."""
        super().__init__(message)
        self.retry_after_s = max(1, math.ceil(retry_after_s))


class RateLimitedError(OverloadedError):
    """The API key exceeds its rate limit; the request was not started."""

    status, code, title = 429, "rate_limited", "Too many requests"


class NotReadyError(ServiceError):
    """A stage of the graph is not available, or not yet."""

    status, code, title, retryable = 503, "not_ready", "Not ready", True


class DeadlineExceededError(ServiceError):
    """The deadline passed before there was a result."""

    status, code, title, retryable = 504, "deadline_exceeded", "Deadline exceeded", True


class EngineError(ServiceError):
    """The configured runtime cannot run on this machine."""


class DatasetError(ServiceError):
    """The labeled images cannot be used."""

    code, title = "dataset", "Unusable data set"


class SourceError(ServiceError):
    """Images of a job cannot be read, or its results folder cannot be written."""

    code, title = "unreadable", "Unreadable"


class TrainingError(ServiceError):
    """Training workers failed."""

    code, title = "training", "Training failed"


class WeightsError(ServiceError):
    """Weights are missing, unreachable or do not match their hash."""

    code, title = "weights", "Weights unavailable"
