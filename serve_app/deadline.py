"""How long an answer is wanted, and by whom: what goes with an image between processes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from serve_app.errors import DeadlineExceededError, InvalidParameterError

MILLISECONDS, SECONDS = "x-request-timeout-ms", "x-request-timeout-seconds"
# Ray Serve knows the second header too, and would answer with plain text if we did not answer first.
AHEAD_OF_SERVE_S = 0.05
# Request id, place of the image in it, and W3C traceparent if the request is traced.
Origin = tuple[str, int, str | None]


class Deadline:
    """A moment after which nobody waits any more. Pickled as the time left, because clocks differ between processes.

    Attributes:
        origin: The image that it is for, once that is known.
    """

    origin: Origin | None = None

    def __init__(self, seconds: float) -> None:
        """Set it so many seconds from now."""
        self._at, self._seconds = time.monotonic() + seconds, seconds

    def left_s(self) -> float:
        """Seconds that are left; negative when it has passed."""
        return self._at - time.monotonic()

    def of(self, origin: Origin) -> Deadline:
        """The same moment, for one image."""
        same = Deadline(self._seconds)
        same._at, same.origin = self._at, origin
        return same

    def check(self) -> None:
        """Do nothing while there is time.

        Raises:
            DeadlineExceededError: There is none left (504).
        """
        if self.left_s() <= 0:
            raise self.exceeded()

    def exceeded(self) -> DeadlineExceededError:
        """The error that says so."""
        return DeadlineExceededError(f"no answer within {self._seconds:.3g} s")

    def __reduce__(self) -> tuple[type[Deadline], tuple[float], dict[str, Origin | None]]:
        """Travel as what is left; the origin apart, so that a stage of a version without it can still read this."""
        return Deadline, (self.left_s(),), {"origin": self.origin}


def read_deadline(headers: Mapping[str, str], longest_s: float) -> Deadline:
    """When the client stops waiting, or when we do, whichever is sooner.

    Args:
        headers: ``X-Request-Timeout-Ms``, or ``X-Request-Timeout-Seconds`` as Ray Serve has it.
        longest_s: What the server allows.

    Raises:
        InvalidParameterError: Not a positive number (422).
    """
    wanted_s = longest_s
    for name, unit, ahead_s in ((MILLISECONDS, 1000, 0.0), (SECONDS, 1, AHEAD_OF_SERVE_S)):
        if (text := headers.get(name)) is not None:
            wanted_s = min(wanted_s, _positive(name, text) / unit - ahead_s)
    return Deadline(wanted_s)


def _positive(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InvalidParameterError(f"header {name}: {text!r:.40} is not a positive number")
    return number
