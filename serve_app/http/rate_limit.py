"""A token bucket per API key: how many images it may send."""

from __future__ import annotations

import time
from collections.abc import Callable

from serve_app.errors import RateLimitedError


class Bucket:
    """A token bucket: refilled at a steady rate up to its size; a request may overdraw it once."""

    def __init__(self, per_s: float, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start full."""
        self._per_s, self._size, self._clock = per_s, size, clock
        self._left, self._since = float(size), clock()

    def check(self) -> None:
        """Do nothing if there is a token.

        Raises:
            RateLimitedError: There is none (429); says when there will be.
        """
        now = self._clock()
        self._left = min(self._size, self._left + (now - self._since) * self._per_s)
        self._since = now
        if self._left < 1:
            wait_s = (1 - self._left) / self._per_s
            raise RateLimitedError(f"this API key may send {self._per_s:g} images/s; wait {wait_s:.1f} s", wait_s)

    def take(self, tokens: int) -> None:
        """Take tokens for images; more than there are make the next request wait longer."""
        self._left -= tokens
