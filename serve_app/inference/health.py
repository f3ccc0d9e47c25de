"""Stage 3/3 · whether the model still answers: traffic proves it, else a batch of one does. Knows no Ray."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from serve_app.errors import NotReadyError
from serve_app.messages import Classification

PROOF_S = 10.0  # a batch that ended so lately says enough
STUCK_S = 20.0  # no batch of one image takes that long; below Serve's own 30 s for a health check


class ModelHealth:
    """Catches a model that hangs, a device that is gone, and one that answers with something else than numbers."""

    def __init__(
        self, ask: Callable[[], Awaitable[Classification]], stuck_s: float = STUCK_S, proof_s: float = PROOF_S
    ) -> None:
        """Nothing is proven yet.

        Args:
            ask: Classifies one image, in its turn.
            stuck_s: Longest time that this may take.
            proof_s: For so long a batch that has ended stands for it.
        """
        self._ask, self._stuck_s, self._proof_s = ask, stuck_s, proof_s
        self._answered = -math.inf

    def answered(self) -> None:
        """Note that a batch has ended well."""
        self._answered = time.monotonic()

    async def check(self) -> None:
        """Do nothing if the model answers.

        Raises:
            NotReadyError: It does not, or not with numbers.
        """
        if time.monotonic() - self._answered < self._proof_s:
            return
        try:
            async with asyncio.timeout(self._stuck_s):
                found = await self._ask()
        except TimeoutError:
            if time.monotonic() - self._answered < self._stuck_s:  # it works, on what came before
                return
            raise NotReadyError(f"the model has not answered for {self._stuck_s:.0f} s") from None
        except Exception as error:
            raise NotReadyError(f"the model fails: {error}") from error
        if not all(map(math.isfinite, found.scores)):
            raise NotReadyError(f"the model's scores are no numbers: {found.scores}")
