"""Every error as an exception.

ServeError
├── UnreadableImageError      the image cannot be read or encoded; nothing was sent
├── NoResponseError           the service did not respond, or the connection broke
│   └── ResponseTimeoutError  … within the timeout; also a TimeoutError
├── UnexpectedResponseError   the response is not one of this API
├── JobTimeoutError           the job has not ended in time; also a TimeoutError
└── ProblemError              the service responded with an error; one class per code
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


class ServeError(Exception):
    """Base of all errors; ``str(error)`` is a sentence for people."""


class UnreadableImageError(ServeError):
    """An image cannot be read from its file, address or object, so it was not sent."""


class NoResponseError(ServeError):
    """The service did not respond, or the connection broke before the end of the response.

    Attributes:
        sent: Whether the service may have received the request.
    """

    def __init__(self, message: str, sent: bool = True) -> None:
        super().__init__(message, sent)
        self.sent = sent

    def __str__(self) -> str:
        return str(self.args[0])


class ResponseTimeoutError(NoResponseError, TimeoutError):
    """The response was not complete within the timeout."""


class JobTimeoutError(ServeError, TimeoutError):
    """A job has not ended within the timeout; it goes on."""


class UnexpectedResponseError(ServeError):
    """The response does not come from this API: a wrong address, a proxy, or another version."""


@dataclass(frozen=True)
class Problem:
    """The body of an error response (RFC 9457)."""

    status: int
    code: str
    title: str = ""
    detail: str = ""
    retryable: bool = False
    retry_after_s: float | None = None
    request_id: str | None = None


class ProblemError(ServeError):
    """The service responded with an error.

    A code of a newer service that this client does not know raises this class itself.

    Attributes:
        problem: The error's body.
    """

    known: ClassVar[dict[str, type[ProblemError]]] = {}  # by code

    def __init_subclass__(cls, code: str, **attributes: Any) -> None:
        """Register the class of a code."""
        super().__init_subclass__(**attributes)
        ProblemError.known[code] = cls

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.detail} ({self.code})"

    @staticmethod
    def of(problem: Problem) -> ProblemError:
        """Return the exception of a problem's code."""
        return ProblemError.known.get(problem.code, ProblemError)(problem)

    @property
    def code(self) -> str:
        """Name of the kind of error; it does not change between versions."""
        return self.problem.code

    @property
    def status(self) -> int:
        """The response's HTTP status."""
        return self.problem.status

    @property
    def detail(self) -> str:
        """What was wrong, where, and what to do."""
        return self.problem.detail or self.problem.title

    @property
    def retryable(self) -> bool:
        """Whether the same request can succeed later."""
        return self.problem.retryable

    @property
    def retry_after(self) -> float | None:
        """Seconds until a retry makes sense; None if the service names none."""
        return self.problem.retry_after_s

    @property
    def request_id(self) -> str | None:
        """Id of the request, by which the operator finds it in the service's log."""
        return self.problem.request_id


class InternalError(ProblemError, code="internal"):
    """The service failed; its log has the reason (500)."""


class MalformedRequestError(ProblemError, code="malformed"):
    """The body does not match its content type, or is empty (400)."""


class UnauthorizedError(ProblemError, code="unauthorized"):
    """The API key is missing or unknown (401)."""


class ForbiddenSourceError(ProblemError, code="forbidden_source"):
    """A job may not read from this source (403)."""


class CrossSiteError(ProblemError, code="cross_site"):
    """The service takes the request for one that a page of another site sent (403)."""


class UnknownModelError(ProblemError, code="unknown_model"):
    """The service has no model or variant of that name (404)."""


class UnknownJobError(ProblemError, code="unknown_job"):
    """The caller has no job of that id (404)."""


class UnknownHeadError(ProblemError, code="unknown_head"):
    """The caller has no head of that name, or the head has no such version, example, suggestion or photo (404)."""


class JobsOffError(ProblemError, code="jobs_off"):
    """Batch jobs are switched off (404)."""


class FeedbackOffError(ProblemError, code="feedback_off"):
    """Feedback is switched off (404)."""


class HeadsOffError(ProblemError, code="heads_off"):
    """Heads are switched off (404)."""


class SlowBodyError(ProblemError, code="slow_body"):
    """The body did not arrive in time (408)."""


class ConflictError(ProblemError, code="conflict"):
    """The request conflicts with a job: another one under the same key, or one that has not ended (409)."""


class HeadNameTakenError(ProblemError, code="head_name_taken"):
    """A head of that name belongs to another API key (409)."""


class TooManyHeadsError(ProblemError, code="too_many_heads"):
    """The API key has as many heads as it may have (409)."""


class TooManySuggestionsError(ProblemError, code="too_many_suggestions"):
    """As many suggestions as may wait for the owner of a head (409)."""


class HeadBackboneChangedError(ProblemError, code="head_backbone_changed"):
    """The head was taught with other weights than those that serve, and has to be taught again (409)."""


class HeadDamagedError(ProblemError, code="head_damaged"):
    """The files of a head are damaged, and no earlier version is left (409)."""


class PreconditionFailedError(ProblemError, code="precondition_failed"):
    """The resource changed since the caller read it: its ETag differs from If-Match (412)."""


class TooLargeError(ProblemError, code="too_large"):
    """The body, an image or the number of images exceeds a limit (413)."""


class ImageTooLargeError(ProblemError, code="image_too_large"):
    """The image has more pixels than the service decodes (413)."""


class TooManyClassesError(ProblemError, code="too_many_classes"):
    """A head would have more classes than the limit (413)."""


class TooManyPhotosError(ProblemError, code="too_many_photos"):
    """A request, a class or a head would have more photos than the limit (413)."""


class QueryTooLongError(ProblemError, code="query_too_long"):
    """The query string is too long (414)."""


class UnsupportedImageError(ProblemError, code="unsupported_image"):
    """The content is not an image in an accepted format (415)."""


class UnsupportedCodingError(ProblemError, code="unsupported_coding"):
    """The body has a content coding that the service cannot undo (415)."""


class UnknownHostError(ProblemError, code="unknown_host"):
    """The service does not answer under this host name (421)."""


class InvalidParameterError(ProblemError, code="invalid_parameter"):
    """A parameter has a value that is out of range (422)."""


class InvalidImageError(ProblemError, code="invalid_image"):
    """The content starts like an image but cannot be decoded (422)."""


class InvalidArchiveError(ProblemError, code="invalid_archive"):
    """The zip contains an entry that is not accepted (422)."""


class UnfetchableImageError(ProblemError, code="unfetchable_image"):
    """The service cannot fetch an image by its URL (422); this client fetches addresses itself and sends the bytes."""


class UnclassifiableImageError(ProblemError, code="unclassifiable_image"):
    """The model gives this image scores that are not finite (422)."""


class RateLimitedError(ProblemError, code="rate_limited"):
    """The API key exceeds its rate limit (429)."""


class RequestLostError(ProblemError, code="request_lost"):
    """The replica that had the request was lost, and the request may have been carried out (502)."""


class OverloadedError(ProblemError, code="overloaded"):
    """The service is overloaded; the request was not started (503)."""


class NotReadyError(ProblemError, code="not_ready"):
    """The service is not ready, or not yet (503)."""


class ModelFailedError(ProblemError, code="model_failed"):
    """A model replica failed; the service replaces it (503)."""


class DeadlineExceededError(ProblemError, code="deadline_exceeded"):
    """The service had no result within the deadline (504)."""
