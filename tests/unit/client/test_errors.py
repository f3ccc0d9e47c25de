"""Exceptions and their codes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from serve_app import errors as service_errors
from serve_client import errors
from serve_client.errors import Problem, ProblemError
from serve_client.from_json import from_json
from serve_client.results import JobState, Models, Prediction

NOT_SENT_TO_CLIENTS = {"dataset", "training", "weights", "unreadable", "source_unavailable"}  # of commands and jobs


def subclasses(kind: type[service_errors.ServiceError]) -> Iterator[type[service_errors.ServiceError]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def test_every_code_of_the_service_has_its_exception() -> None:
    """A new error of the service needs a class here; its docstring names the status."""
    served = {each.code: each for each in (service_errors.ServiceError, *subclasses(service_errors.ServiceError))}
    sent = {code for code in served if code not in NOT_SENT_TO_CLIENTS}
    assert sent == ProblemError.known.keys()
    for code, kind in ProblemError.known.items():
        assert f"({served[code].status})" in (kind.__doc__ or ""), code


def test_exceptions_survive_pickling() -> None:
    """Worker processes can hand them back."""
    problem = Problem(415, "unsupported_image", "Unsupported image", "not a JPEG", False, None, "req_1")
    error = pickle.loads(pickle.dumps(ProblemError.of(problem)))
    assert type(error) is errors.UnsupportedImageError
    assert (error.problem, str(error)) == (problem, "not a JPEG (unsupported_image)")
    timeout = pickle.loads(pickle.dumps(errors.ResponseTimeoutError("no response", sent=False)))
    assert isinstance(timeout, TimeoutError)
    assert (str(timeout), timeout.sent) == ("no response", False)


def test_an_unknown_code_is_a_plain_problem() -> None:
    """A code of a newer service is readable, and keeps its status."""
    error = ProblemError.of(Problem(418, "teapot", "A teapot"))
    assert type(error) is ProblemError
    assert (error.code, error.status, error.detail) == ("teapot", 418, "A teapot")


def test_members_of_a_newer_service_are_ignored() -> None:
    assert from_json(Prediction, {"label": "cat", "score": 1, "class_id": 3, "color": "red"}) == Prediction(
        "cat", 1.0, 3
    )


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Prediction, {"label": "cat"}),
        (Prediction, {"label": 7, "score": 1, "class_id": 3}),
        (Models, []),
        (JobState, "x"),
    ],
)
def test_another_shape_is_an_error(kind: type, data: object) -> None:
    """A missing member and a value of another type name the dataclass and quote the JSON."""
    with pytest.raises(errors.UnexpectedResponseError, match=f"does not fit {kind.__name__}"):
        from_json(kind, data)
