"""When a request is repeated, and how long to wait before that."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from serve_client.errors import NoResponseError, ProblemError, ServeError

FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 8.0  # without Retry-After; doubles from attempt to attempt
# The service refuses with these before it begins, so even a request that may run only once can be repeated.
REFUSED = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
# These may come from a proxy in front, and say nothing about what happened to the request.
UNCERTAIN = (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)


class Deadline:
    """The time until which a call may send, wait and repeat."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout_s, self._clock = timeout_s, clock
        self._expires_at = clock() + timeout_s

    def left_s(self) -> float:
        """Seconds left; negative after the deadline."""
        return self._expires_at - self._clock()


class Retries:
    """Decides about one call's repetitions.

    Args:
        deadline: No wait goes beyond it.
        max_retries: Most repetitions.
        repeatable: Whether the request may be carried out twice.
    """

    def __init__(self, deadline: Deadline, max_retries: int, repeatable: bool = True) -> None:
        self.deadline, self._max_retries, self._repeatable = deadline, max_retries, repeatable
        self._done = 0

    def pause_s(self, error: ServeError) -> float:
        """Return how many seconds to wait before the next attempt; raise the error if there is none."""
        if self._done >= self._max_retries or not self.is_passing(error):
            raise error
        # The random part spreads clients that were refused at the same moment.
        pause_s: float = min(FIRST_PAUSE_S * 2**self._done, MAX_PAUSE_S) * random.uniform(0.5, 1)
        if isinstance(error, ProblemError):
            pause_s += error.retry_after or 0
        if pause_s >= self.deadline.left_s():
            raise error
        self._done += 1
        return pause_s

    def is_passing(self, error: ServeError) -> bool:
        """Return whether the request can succeed later, and may be sent again."""
        if isinstance(error, NoResponseError):
            return self._repeatable or not error.sent
        if not isinstance(error, ProblemError):
            return False
        return error.status in REFUSED or (self._repeatable and (error.retryable or error.status in UNCERTAIN))


def parse_retry_after(text: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which holds seconds or a date; None if it holds neither."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
