"""Deadlines: read from headers, pickled between processes."""

from __future__ import annotations

import pickle

import pytest

from serve_app import deadline
from serve_app.deadline import Deadline, read_deadline
from serve_app.errors import DeadlineExceededError, InvalidParameterError
from serve_app.messages import RequestContext
from tests.support.clock import FakeClock


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Replace the monotonic clock."""
    fake = FakeClock(1000)
    monkeypatch.setattr(deadline.time, "monotonic", fake)
    return fake


def test_a_deadline_is_pickled_as_the_time_left(clock: FakeClock) -> None:
    """Another process, whose clock differs, sees the same seconds left and the same timeout in the error."""
    original = Deadline(10)
    clock.advance(4)
    sent = pickle.dumps(original)
    clock.now = 5_000
    received = pickle.loads(sent)
    assert received.left_s() == pytest.approx(6)
    clock.advance(7)
    with pytest.raises(DeadlineExceededError, match="no result within 10 s"):
        received.check()


def test_a_context_is_pickled_with_its_deadline(clock: FakeClock) -> None:
    """Request id, index, trace and the time left reach the next process."""
    context = RequestContext("req_1", 3, Deadline(10), "00-1-2-01")
    received = pickle.loads(pickle.dumps(context))
    assert (received.request_id, received.index, received.traceparent) == ("req_1", 3, "00-1-2-01")
    assert received.deadline.left_s() == pytest.approx(10)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 30),
        ({"x-request-timeout-ms": "250"}, 0.25),
        ({"x-request-timeout-seconds": "2.5"}, 2.5),
        ({"x-forwarded-request-timeout-seconds": "2.5"}, 2.5),
        ({"x-request-timeout-ms": "9000", "x-request-timeout-seconds": "4"}, 4),
        ({"x-request-timeout-ms": "90000"}, 30),
    ],
)
def test_the_shortest_timeout_holds(headers: dict[str, str], seconds: float) -> None:
    """The client's timeout or the server's limit, whichever is shorter."""
    assert read_deadline(headers, 30).left_s() == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "nan", "inf"])
def test_an_invalid_timeout_is_refused(text: str) -> None:
    """Anything but a positive number is a 422 that names the header."""
    with pytest.raises(InvalidParameterError, match=r"x-request-timeout-ms: .* is not a positive number"):
        read_deadline({"x-request-timeout-ms": text}, 30)


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({"x-request-timeout-seconds": "0.01"}, "no result within 0.01 s"),
        ({"x-request-timeout-seconds": "4"}, "no result within 4 s"),
        ({"x-request-timeout-ms": "0.0001"}, "no result within 0.001 s"),
        ({"x-request-timeout-ms": "70"}, "no result within 0.07 s"),
        ({"x-request-timeout-ms": "1500", "x-request-timeout-seconds": "1.5"}, "no result within 1.5 s"),
        ({"x-request-timeout-ms": "1234567"}, "no result within 30 s"),
    ],
)
def test_the_error_names_the_timeout_that_was_asked_for(
    clock: FakeClock, headers: dict[str, str], sentence: str
) -> None:
    """Never less, negative or zero, although Ray's header expires early; the same after a trip to another process."""
    asked = read_deadline(headers, 30)
    clock.advance(60)
    for each in (asked, pickle.loads(pickle.dumps(asked))):
        with pytest.raises(DeadlineExceededError) as caught:
            each.check()
        assert str(caught.value) == sentence


def test_a_long_timeout_is_a_plain_number() -> None:
    assert str(Deadline(7200).exceeded()) == "no result within 7200 s"
