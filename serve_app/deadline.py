"""When a client stops waiting: read from the request's headers, carried to every stage."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from serve_app.errors import DeadlineExceededError, InvalidParameterError
from serve_app.proxy_headers import waited_s

TIMEOUT_MS_HEADER, TIMEOUT_S_HEADER = "x-request-timeout-ms", "x-request-timeout-seconds"
# Ray Serve would obey the second header too and answer with plain text. Before Ray reads it, it gets this name.
FORWARDED_TIMEOUT_S_HEADER = "x-forwarded-request-timeout-seconds"


class Deadline:
    """A point in time, ``left_s`` seconds from now, by default ``timeout_s``, which the error names.

    ``timeout_s`` is the timeout that the client or the configuration set, so that the error names a number that the
    client knows. It is pickled as the seconds left, because clocks differ between machines.
    """

    __slots__ = ("_expires_at", "_timeout_s")

    def __init__(self, timeout_s: float, left_s: float | None = None) -> None:
        self._expires_at = time.monotonic() + (timeout_s if left_s is None else left_s)
        self._timeout_s = timeout_s

    def left_s(self) -> float:
        """Seconds left; negative after the deadline."""
        return self._expires_at - time.monotonic()

    def check(self) -> None:
        """Raise DeadlineExceededError (504) after the deadline."""
        if self.left_s() <= 0:
            raise self.exceeded()

    def exceeded(self) -> DeadlineExceededError:
        """Build the error for a passed deadline."""
        # Rounded to milliseconds, and never to zero.
        return DeadlineExceededError(f"no result within {max(round(self._timeout_s, 3), 0.001):g} s")

    def __reduce__(self) -> tuple[type[Deadline], tuple[float, float]]:
        return Deadline, (self._timeout_s, self.left_s())


def read_deadline(headers: Mapping[str, str], max_timeout_s: float) -> Deadline:
    """Read how long the client waits; the server's own limit holds where it is shorter. Time in HAProxy counts.

    ``X-Request-Timeout-Ms`` says it, or Ray Serve's ``X-Request-Timeout-Seconds``. A header that is not a positive
    number raises InvalidParameterError (422).
    """
    timeout_s = max_timeout_s
    for name, sent_name, units_per_s in (
        (TIMEOUT_MS_HEADER, TIMEOUT_MS_HEADER, 1000),
        (TIMEOUT_S_HEADER, TIMEOUT_S_HEADER, 1),
        (FORWARDED_TIMEOUT_S_HEADER, TIMEOUT_S_HEADER, 1),
    ):
        if (text := headers.get(name)) is not None:
            timeout_s = min(timeout_s, _positive(sent_name, text) / units_per_s)
    return Deadline(timeout_s, timeout_s - waited_s(headers))


def _positive(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InvalidParameterError(f"header {name}: {text!r:.40} is not a positive number")
    return number
