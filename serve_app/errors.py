"""Every error as a type. An error that a client can get owns its HTTP status, code and title.

Every error passes its arguments to the base constructor, so it survives pickling between processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar


class ServiceError(Exception):
    """Base of all errors; ``str(error)`` is the sentence that the user reads."""

    status: ClassVar[int] = 500  # HTTP status
    code: ClassVar[str] = "internal"  # stable name of the kind of error
    title: ClassVar[str] = "Internal error"  # short text for people
    retryable: ClassVar[bool] = False  # whether the same request can succeed later
    retry_after_s: int = 1  # seconds until a retry makes sense
    response_headers: ClassVar[Mapping[str, str]] = {}  # further headers of the response

    def __init_subclass__(cls, **attributes: Any) -> None:
        """Set class attributes from the keywords of a class statement; the others are inherited."""
        for name, value in attributes.items():
            setattr(cls, name, value)


class MalformedRequestError(ServiceError, status=400, code="malformed", title="Malformed request"):
    """The body does not match its content type."""


class UnauthorizedError(ServiceError, status=401, code="unauthorized", title="Unauthorized"):
    """The API key is missing or unknown."""


class ForbiddenSourceError(ServiceError, status=403, code="forbidden_source", title="Forbidden source"):
    """A job or an image may not be read from this source."""


class CrossSiteError(ServiceError, status=403, code="cross_site", title="Cross-site request"):
    """A page of another site sent the request from a browser."""


class UnknownModelError(ServiceError, status=404, code="unknown_model", title="Unknown model"):
    """This service has no model of that name."""


class FeedbackOffError(ServiceError, status=404, code="feedback_off", title="Feedback is switched off"):
    """Feedback is switched off."""


class UnknownJobError(ServiceError, status=404, code="unknown_job", title="Unknown job"):
    """The caller has no job of that id."""


class UnknownHeadError(ServiceError, status=404, code="unknown_head", title="Unknown head"):
    """The caller has no head of that name, or the head has no such version, example, suggestion or photo."""


class JobsOffError(ServiceError, status=404, code="jobs_off", title="Jobs are switched off"):
    """Batch jobs are switched off."""


class HeadsOffError(ServiceError, status=404, code="heads_off", title="Heads are switched off"):
    """Heads are switched off."""


class QueryTooLongError(ServiceError, status=414, code="query_too_long", title="Query too long"):
    """The query string is longer than any use of it."""


class SlowBodyError(
    ServiceError,
    status=408,
    code="slow_body",
    title="Slow body",
    response_headers={"Connection": "close"},  # the rest of the body would hold the connection
):
    """The body did not arrive in time."""


class ConflictError(ServiceError, status=409, code="conflict", title="Conflict"):
    """The request conflicts with a job: another one under the same key, or one that has not ended."""


class CorruptJobError(ConflictError):
    """The request of a job cannot be read any more: its file is damaged, or a newer version wrote it."""


class HeadNameTakenError(ServiceError, status=409, code="head_name_taken", title="Name is taken"):
    """A head of that name belongs to another API key."""


class TooManyHeadsError(ServiceError, status=409, code="too_many_heads", title="Too many heads"):
    """The API key has as many heads as it may have."""


class TooManySuggestionsError(ServiceError, status=409, code="too_many_suggestions", title="Too many suggestions"):
    """As many suggestions as may wait for the owner of a head."""


class HeadBackboneChangedError(ServiceError, status=409, code="head_backbone_changed", title="Backbone has changed"):
    """The head was taught with other weights than those that serve, and has to be taught again."""


class HeadDamagedError(ServiceError, status=409, code="head_damaged", title="Head is damaged"):
    """The files of a head are damaged, and no earlier version is left."""


class HeadFormatError(HeadDamagedError):
    """A newer version of the service wrote the head; its files stay, and after an upgrade they read again."""


class PreconditionFailedError(ServiceError, status=412, code="precondition_failed", title="Precondition failed"):
    """The resource changed since the caller read it: its ETag differs from If-Match."""


class TooLargeError(ServiceError, status=413, code="too_large", title="Too large"):
    """The body, an image in it or the number of images exceeds a limit."""

    @classmethod
    def over(cls, what: str, size: int, limit: int) -> TooLargeError:
        """Return the error for something of ``size`` bytes."""
        return cls(f"{what} has {size:,} bytes; the limit is {limit:,} ({limit / 2**20:.1f} MB)")


class TooManyClassesError(TooLargeError, code="too_many_classes", title="Too many classes"):
    """A head would have more classes than the limit."""


class TooManyPhotosError(TooLargeError, code="too_many_photos", title="Too many photos"):
    """A request, a class or a head would have more photos than the limit."""


class ImageTooLargeError(TooLargeError, code="image_too_large", title="Image too large"):
    """The image's header declares more pixels than the limit; nothing has been decoded."""


class UnsupportedImageError(ServiceError, status=415, code="unsupported_image", title="Unsupported image"):
    """The content is not an image in an accepted format."""


class UnsupportedCodingError(
    ServiceError,
    status=415,
    code="unsupported_coding",
    title="Unsupported content coding",
    response_headers={"Accept-Encoding": "gzip, deflate"},
):
    """The body has a content coding that the service cannot undo; RFC 9110, 15.5.16 asks for the header."""


class UnknownHostError(ServiceError, status=421, code="unknown_host", title="Misdirected request"):
    """The Host header names no host of this service."""


class InvalidParameterError(ServiceError, status=422, code="invalid_parameter", title="Invalid parameter"):
    """A parameter is unknown or its value is out of range."""


class InvalidImageError(ServiceError, status=422, code="invalid_image", title="Invalid image"):
    """The content starts like an image of an accepted format but cannot be decoded."""


class UnfetchableImageError(ServiceError, status=422, code="unfetchable_image", title="Image cannot be fetched"):
    """A URL gives no image: its host cannot be reached, may not be, or answers with something else."""


class UnclassifiableImageError(
    ServiceError, status=422, code="unclassifiable_image", title="Image cannot be classified"
):
    """A sound model gives this image scores that are not finite numbers: its values overflow half precision."""


class ArchiveError(ServiceError, status=422, code="invalid_archive", title="Invalid archive"):
    """The zip contains an entry that is not accepted."""


class LostRequestError(ServiceError, status=502, code="request_lost", title="Request lost"):
    """The replica that had the request was lost, and the request may have been carried out."""


class OverloadedError(ServiceError, status=503, code="overloaded", title="Overloaded", retryable=True):
    """The service is overloaded; the request was not started. A retry makes sense after at least one second."""

    def __init__(self, message: str, retry_after_s: float = 1) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, math.ceil(retry_after_s))


class RateLimitedError(OverloadedError, status=429, code="rate_limited", title="Too many requests"):
    """The API key exceeds its rate limit; the request was not started."""


class NotReadyError(ServiceError, status=503, code="not_ready", title="Not ready", retryable=True):
    """A stage of the graph is not available, or not yet."""


class ModelFailedError(ServiceError, status=503, code="model_failed", title="Model failed", retryable=True):
    """A model replica gives wrong results, or scores that are not finite numbers; Ray Serve replaces it."""


class DeadlineExceededError(
    ServiceError, status=504, code="deadline_exceeded", title="Deadline exceeded", retryable=True
):
    """The deadline passed before there was a result."""


class EngineError(ServiceError):
    """The configured runtime cannot run on this machine; fails a deployment, never a request."""


class DatasetError(ServiceError, code="dataset", title="Unusable data set"):
    """The labeled images cannot be used for training or evaluation."""


class SourceError(ServiceError, code="unreadable", title="Unreadable"):
    """Images of a job cannot be read, or its results folder cannot be written."""


class SourceUnavailableError(SourceError, code="source_unavailable", title="Source unavailable", retryable=True):
    """The source of a job or its results folder cannot be reached now, or the disk is full; a later try can succeed."""


class TrainingError(ServiceError, code="training", title="Training failed"):
    """Training workers failed."""


class WeightsError(ServiceError, code="weights", title="Weights unavailable"):
    """Weights are missing, unreachable or do not match their hash; fails a deployment, never a request."""


class WeightsUnavailableError(WeightsError, retryable=True):
    """Weights cannot be read or downloaded now; a later try can succeed."""
