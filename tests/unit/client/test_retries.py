"""When a request is repeated, and how long the client waits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from serve_client.errors import NoResponseError, Problem, ProblemError, ResponseTimeoutError, ServeError
from serve_client.retries import FIRST_PAUSE_S, MAX_PAUSE_S, Deadline, Retries, parse_retry_after

BUSY = ProblemError.of(Problem(503, "overloaded", retryable=True, retry_after_s=3))
LOST = ProblemError.of(Problem(502, "request_lost"))
LATE = ProblemError.of(Problem(504, "deadline_exceeded", retryable=True, retry_after_s=1))
BROKEN = ProblemError.of(Problem(422, "invalid_image"))
CUT, REFUSED = NoResponseError("cut"), NoResponseError("connection refused", sent=False)


class Clock:
    """A clock that stands still until a test moves ``now``."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def retries(timeout_s: float = 60, most: int = 5, repeatable: bool = True, clock: Clock | None = None) -> Retries:
    return Retries(Deadline(timeout_s, clock or Clock()), most, repeatable)


@pytest.mark.parametrize(
    ("error", "repeatable", "once"),
    [
        (BUSY, True, True),
        (LOST, True, False),
        (LATE, True, False),
        (BROKEN, False, False),
        (CUT, True, False),
        (REFUSED, True, True),
        (ResponseTimeoutError("late"), True, False),
    ],
)
def test_what_is_repeated(error: ServeError, repeatable: bool, once: bool) -> None:
    """A request that may run only once is repeated only where the service had not begun."""
    assert retries().is_passing(error) == repeatable
    assert retries(repeatable=False).is_passing(error) == once


def test_a_refusal_is_raised_at_once() -> None:
    with pytest.raises(ProblemError) as raised:
        retries().pause_s(BROKEN)
    assert raised.value is BROKEN


def test_retry_after_is_kept() -> None:
    """The wait is never shorter than the service asks, and at most half a second longer at first."""
    for _ in range(100):
        assert 3 + FIRST_PAUSE_S / 2 <= retries().pause_s(BUSY) <= 3 + FIRST_PAUSE_S


def test_pauses_grow_to_a_limit() -> None:
    """Without Retry-After, each pause is twice as long as the one before, in the mean, up to MAX_PAUSE_S."""
    limits = [min(FIRST_PAUSE_S * 2**n, MAX_PAUSE_S) for n in range(8)]
    growing = retries(timeout_s=1000, most=8)
    for limit in limits:
        assert limit / 2 <= growing.pause_s(CUT) <= limit


def test_the_number_is_bounded() -> None:
    counted = retries(most=2)
    counted.pause_s(CUT)
    counted.pause_s(CUT)
    with pytest.raises(NoResponseError, match="cut"):
        counted.pause_s(CUT)


def test_no_wait_goes_beyond_the_deadline() -> None:
    """An error whose wait would end after the deadline is raised at once instead of after a useless wait."""
    clock = Clock()
    bounded = retries(timeout_s=10, clock=clock)
    assert bounded.pause_s(BUSY) < 10
    clock.now = 7.0
    with pytest.raises(ProblemError) as raised:
        bounded.pause_s(BUSY)
    assert raised.value is BUSY


def test_retry_after_in_seconds_or_as_a_date() -> None:
    assert parse_retry_after("7") == 7
    assert parse_retry_after("-1") == 0
    for nothing in (None, "soon", "nan", "inf", ""):
        assert parse_retry_after(nothing) is None
    at = parse_retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert at is not None
    assert 0 < at <= 60
