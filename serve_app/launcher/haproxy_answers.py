"""What HAProxy answers by itself: the problems of http/responses.py, written as HAProxy's directives."""

from __future__ import annotations

import json
from collections.abc import Iterator

from serve_app.errors import (
    DeadlineExceededError,
    LostRequestError,
    MalformedRequestError,
    NotReadyError,
    OverloadedError,
    ServiceError,
    SlowBodyError,
)

REQUEST_TIMEOUT_S = 30  # for the head of a request and for the part of its body that fits HAProxy's buffer
REQUEST_ID = "txn.problem_request_id"  # HAProxy variable: ',"request_id":"…"' if the client sent an id
REPEATABLE = "txn.repeatable"  # HAProxy variable: set if a request may be carried out twice
LOST_BODY = "txn.lost_body"  # HAProxy variable: the answer to a request whose replica was lost
RETRY_S = "txn.retry_s"  # HAProxy variable: seconds until the requests that wait now have been answered
NOT_TAKEN_BODY = "txn.not_taken_body"  # HAProxy variable: the answer to a request that no replica takes
QUEUE_TOO_LONG = OverloadedError(
    "more requests wait than can be answered before the deadline of this one; try again later"
)
TOO_MANY_DOWNLOADS = OverloadedError("too many downloads are in flight; try again")
ADDRESS_OVERLOADED = OverloadedError("too many large requests of your address are in flight; try again")
# By status. A lost replica has two answers, see `lost_rules`, and so has a request that no replica takes.
PROBLEMS: tuple[ServiceError, ...] = (
    ServiceError("the proxy failed on this request"),
    MalformedRequestError("this is not a complete HTTP/1.1 request, or the client closed the connection"),
    SlowBodyError(f"the request did not arrive within {REQUEST_TIMEOUT_S} s"),
    DeadlineExceededError("the service did not answer in time"),
)
NOT_TAKEN = NotReadyError("no replica of the service took this request; try again")
LOST = NotReadyError("the replica that had this request was lost; try again")
LOST_UNREPEATABLE = LostRequestError(
    "the replica that had this request was lost; it may have been carried out: check that before you send it again"
)
# Classification changes nothing, so it can be repeated. Other POST requests may have been carried out already.
CLASSIFY_PATHS = (
    r"(^|/(v1/classify|v1/embed|predict|predictions/[^/]+(/[^/]+)?|v2/models/[^/]+(/versions/[^/]+)?/infer))/?$"
)
JOBS_PATHS = "/v1/jobs /v1/jobs/"  # the service recognizes a repeated job by its Idempotency-Key


def request_id_rule() -> str:
    """Return the rule that keeps the client's request id for HAProxy's own answers."""
    value = "%[req.hdr(x-request-id),json(utf8s)]"
    return f"""set-var-fmt({REQUEST_ID}) ',"request_id":"{value}"' if {{ req.hdr(x-request-id) -m found }}"""


def lost_rules() -> Iterator[str]:
    """Yield rules that repeat only what may be repeated, and that answer accordingly when a replica is lost.

    HAProxy calls a replica that closed the connection without an answer 502. A request that can be repeated gets 503
    with Retry-After, as from the service itself.
    """
    repeatable = f"{{ var({REPEATABLE}) -m found }}"
    keyed_job = f"METH_POST {{ path_end {JOBS_PATHS} }} {{ req.hdr(idempotency-key) -m found }}"
    safe = f"!METH_POST or {{ path_reg {CLASSIFY_PATHS} }} or {keyed_job}"
    yield f"http-request set-var({REPEATABLE}) bool(true) if {safe}"
    yield f"http-request disable-l7-retry if !{repeatable}"
    yield f"http-request set-var-fmt({LOST_BODY}) '{body(LOST_UNREPEATABLE)}' if !{repeatable}"
    yield f"http-request set-var-fmt({LOST_BODY}) '{body(LOST)}' if {repeatable}"
    yield f"http-after-response set-header Retry-After {LOST.retry_after_s} if {{ status 502 }} {repeatable}"
    yield f"http-after-response set-status {LOST.status} if {{ status 502 }} {repeatable}"


def error_directives() -> Iterator[str]:
    """Yield the directives that replace HAProxy's error pages."""
    for error in PROBLEMS:
        yield f"http-error status {error.status} {reply(error)}"
    yield f"http-error status 502 content-type application/problem+json lf-string '%[var({LOST_BODY})]'"
    retry = f"hdr Retry-After %[var({RETRY_S})]"
    yield f"http-error status 503 content-type application/problem+json {retry} lf-string '%[var({NOT_TAKEN_BODY})]'"


def not_taken_rules() -> Iterator[str]:
    """Yield rules that prepare the answer to a request that no replica takes; `queue_timeout_rule` changes it."""
    yield f"http-request set-var({RETRY_S}) int({NOT_TAKEN.retry_after_s})"
    yield f"http-request set-var-fmt({NOT_TAKEN_BODY}) '{body(NOT_TAKEN, f'%[var({RETRY_S})]')}'"


def queue_timeout_rule(condition: str) -> str:
    """Return the rule for a request that may wait too long: HAProxy answers 503 then, as without a replica."""
    return f"http-request set-var-fmt({NOT_TAKEN_BODY}) '{body(QUEUE_TOO_LONG, f'%[var({RETRY_S})]')}' if {condition}"


def reply(error: ServiceError, retry_s: str | None = None) -> str:
    """Return the arguments that make HAProxy answer with an error; ``retry_s`` replaces the error's own time."""
    retry = f" hdr Retry-After {retry_s or error.retry_after_s}" if error.retryable else ""
    return f"content-type application/problem+json{retry} lf-string '{body(error, retry_s)}'"


def body(error: ServiceError, retry_s: str | None = None) -> str:
    """Return the body of the answer, in HAProxy's log format; ``retry_s`` replaces the error's own time.

    HAProxy knows no protocols, so the sentence also stands where clients of the Open Inference Protocol and of Hugging
    Face (``error``) and of TorchServe (``message``) look for it.
    """
    values: dict[str, object] = {
        "type": f"/problems/{error.code.replace('_', '-')}",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": str(error),
        "error": str(error),
        "message": str(error),
        "retryable": error.retryable,
    }
    retry = f', "retry_after_s": {retry_s or error.retry_after_s}' if error.retryable else ""
    return json.dumps(values).removesuffix("}") + f"{retry}%[var({REQUEST_ID})]}}"
