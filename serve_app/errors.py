"""Everything that can go wrong, as types: each owns its HTTP status, its code and its title.

ServiceError                    500 internal
├── MalformedRequestError       400 malformed
├── UnknownModelError           404 unknown_model
├── SlowBodyError               408 slow_body
├── TooLargeError               413 too_large
│   └── ImageTooLargeError      413 image_too_large
├── UnsupportedImageError       415 unsupported_image
├── InvalidParameterError       422 invalid_parameter
├── InvalidImageError           422 invalid_image
├── OverloadedError             503 overloaded           (retryable)
├── NotReadyError               503 not_ready            (retryable)
├── DeadlineExceededError       504 deadline_exceeded    (retryable)
├── EngineError                 an engine that cannot run here; fails a deployment, never a request
├── DatasetError                a folder of images that cannot be trained or evaluated on
└── WeightsError                weights that cannot be had; fails a deployment, never a request

Every error is built from one message, so it survives pickling between processes.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """An error with a place in the HTTP contract; ``str(error)`` is the sentence shown."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False


class MalformedRequestError(ServiceError):
    """The body is not what its content type promises."""

    status, code, title = 400, "malformed", "Malformed request"


class SlowBodyError(ServiceError):
    """The body did not arrive within the time that a request may take."""

    status, code, title = 408, "slow_body", "Slow body"


class UnknownModelError(ServiceError):
    """No model of that name is served here."""

    status, code, title = 404, "unknown_model", "Unknown model"


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


class OverloadedError(ServiceError):
    """Too many requests wait already; this one was not started."""

    status, code, title, retryable = 503, "overloaded", "Overloaded", True


class NotReadyError(ServiceError):
    """A stage of the graph is not up (yet)."""

    status, code, title, retryable = 503, "not_ready", "Not ready", True


class DeadlineExceededError(ServiceError):
    """No answer within the time allowed."""

    status, code, title, retryable = 504, "deadline_exceeded", "Deadline exceeded", True


class EngineError(ServiceError):
    """The configured way to run the model cannot be had on this machine."""


class DatasetError(ServiceError):
    """A folder of labelled images that cannot be used, and why."""

    code, title = "dataset", "Unusable data set"


class WeightsError(ServiceError):
    """Weights that are missing, unreachable or not what they should be."""

    code, title = "weights", "Weights unavailable"
