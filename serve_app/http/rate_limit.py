"""Limit the images that an API key may send, with a token bucket."""

from __future__ import annotations

import time
from collections.abc import Callable

from serve_app.errors import RateLimitedError


class TokenBucket:
    """A token bucket that refills at a constant rate, as in RFC 2697; a request may overdraw it once.

    The number of images is known only after a request was admitted. So a request needs one token, takes one
    token per image, and a negative balance delays the next request. ``rate`` is in tokens per second.
    """

    def __init__(self, rate: float, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._capacity, self._clock = rate, capacity, clock
        self._tokens, self._refilled_s = float(capacity), clock()

    def check(self) -> None:
        """Raise RateLimitedError (429), which says when to retry, unless the bucket holds at least one token."""
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._refilled_s) * self._rate)
        self._refilled_s = now
        if self._tokens < 1:
            wait_s = (1 - self._tokens) / self._rate
            raise RateLimitedError(f"this API key may send {self._rate:g} images/s; wait {wait_s:.1f} s", wait_s)

    def take(self, tokens: int) -> None:
        """Take tokens, even if the balance becomes negative."""
        self._tokens -= tokens
