"""Whether the model still gives results: recent traffic proves it, else a probe of one image does."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from serve_app.errors import NotReadyError
from serve_app.messages import ClassifyResult

RECENT_S = 10.0  # a batch that succeeded within this time proves health
STUCK_S = 20.0  # no batch of one image takes this long; below Ray Serve's 30 s for a health check


class ModelHealth:
    """Detects a model that hangs, a lost device, and results that are wrong or not finite numbers.

    Ray Serve replaces a replica whose check fails three times in a row. A check fails if a batch has failed by the
    model's fault since the last check, whatever batches succeeded meanwhile: a device that fails now and then is
    replaced, and one failure alone is not. After such a batch only the probe proves health again.

    Args:
        probe: Classifies one image through the queue of requests; raises if the result is wrong.
        stuck_s: Longest time that the probe may take, in seconds.
        recent_s: For this long a successful batch replaces the probe, in seconds.
    """

    def __init__(
        self, probe: Callable[[], Awaitable[ClassifyResult]], stuck_s: float = STUCK_S, recent_s: float = RECENT_S
    ) -> None:
        self._probe, self._stuck_s, self._recent_s = probe, stuck_s, recent_s
        self._succeeded_at = -math.inf
        self._failure: str | None = None  # why a batch failed since the last check
        self._suspect = False  # a batch or a probe has failed, and no probe has succeeded since

    def batch_succeeded(self) -> None:
        """Record that a batch has succeeded; runs in the event loop."""
        self._succeeded_at = asyncio.get_running_loop().time()

    def model_failed(self, reason: str) -> None:
        """Record that a batch has failed because the model or its device is broken."""
        self._failure, self._suspect = reason, True

    async def check(self) -> None:
        """Raise NotReadyError if the model gives no results, wrong ones, or scores that are not finite."""
        now = asyncio.get_running_loop().time
        failure, self._failure = self._failure, None
        if failure:
            raise NotReadyError(f"the model fails: {failure}")
        if not self._suspect and now() - self._succeeded_at < self._recent_s:
            return
        try:
            async with asyncio.timeout(self._stuck_s):
                result = await self._probe()
        except TimeoutError:
            if now() - self._succeeded_at < self._stuck_s:  # earlier requests keep it busy
                return
            raise NotReadyError(f"the model has given no result for {self._stuck_s:.0f} s") from None
        except Exception as error:
            self._suspect = True  # the probe's own batch may have succeeded, with wrong scores
            raise NotReadyError(f"the model fails: {error}") from error
        self._suspect = not all(map(math.isfinite, result.scores))
        if self._suspect:
            raise NotReadyError(f"the model's scores are not finite numbers: {result.scores}")
