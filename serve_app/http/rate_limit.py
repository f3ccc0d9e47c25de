"""Limit what an API key may send, with a token bucket."""

from __future__ import annotations

import time
from collections.abc import Callable

from serve_app.errors import RateLimitedError


class TokenBucket:
    """A token bucket that refills at a constant rate, as in RFC 2697; a request may overdraw it once.

    The number of images is known only after a request was admitted. So a request needs one token, takes one
    token per image, and a negative balance delays the next request.

    Args:
        rate: Tokens per second.
        capacity: Most tokens.
        clock: Returns seconds.
        unit: What a token stands for, in the error message.
    """

    def __init__(
        self, rate: float, capacity: int, clock: Callable[[], float] = time.monotonic, unit: str = "images"
    ) -> None:
        self._rate, self.capacity, self._clock, self._unit = rate, capacity, clock, unit
        self._tokens, self._refilled_s = float(capacity), clock()

    def reconfigure(self, rate: float, capacity: int) -> None:
        """Change rate and capacity; what was taken stays taken."""
        if (rate, capacity) != (self._rate, self.capacity):
            taken = self.capacity - self.tokens()
            self._rate, self.capacity, self._tokens = rate, capacity, capacity - taken

    def tokens(self) -> float:
        """Return the balance, at most the capacity; negative after a request that has overdrawn it."""
        now = self._clock()
        self._tokens = min(self.capacity, self._tokens + (now - self._refilled_s) * self._rate)
        self._refilled_s = now
        return self._tokens

    def check(self) -> None:
        """Raise RateLimitedError (429), which says when to retry, unless the bucket holds at least one token."""
        if (tokens := self.tokens()) < 1:
            wait_s = (1 - tokens) / self._rate
            raise RateLimitedError(f"this API key may send {self._rate:g} {self._unit}/s; wait {wait_s:.1f} s", wait_s)

    def take(self, tokens: int) -> None:
        """Take tokens, even if the balance becomes negative."""
        self._tokens -= tokens
