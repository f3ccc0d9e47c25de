"""Stage 1/3 · one variant of the model as the ingress reaches it: images go there in groups. Knows no Ray."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import replace
from typing import Protocol

from serve_app.batcher import MicroBatcher
from serve_app.config import BatchConfig, IngressConfig, MiB
from serve_app.errors import NotReadyError, ServiceError
from serve_app.http.service import Answer, Wanted
from serve_app.messages import ModelState
from serve_app.observability import tracing

MAX_CALL_BYTES = 32 * MiB  # half of what configs/ray.env lets a call carry
ASK_AGAIN_S = 0.5
PROOF_S = 1.0  # an answer that recent says more than a ping, for which a busy stage may be too late


class VariantClient(Protocol):
    """The way to one variant."""

    async def send(self, wanted: list[Wanted], company: int) -> list[Answer | ServiceError]:
        """Have images classified; company as in MicroBatcher.

        Raises:
            NotReadyError: Nobody is there to do it.
        """

    async def ask(self) -> ModelState:
        """Ask one of its replicas what it serves.

        Raises:
            NotReadyError: None answers.
        """


class Variant:
    """One variant: images go to it in groups."""

    def __init__(self, name: str, link: VariantClient, grouping: tuple[BatchConfig, int]) -> None:
        """Send nothing yet."""
        self.name = name
        self.state: ModelState | None = None  # as last heard
        self.trouble: str | None = None  # why it gets no requests, while it gets none
        self.counts: Counter[str] = Counter()
        self._link = link
        self._under_way = 0
        self._answered = -math.inf
        self._asking: asyncio.Task[ModelState] | None = None
        self._groups: MicroBatcher[Wanted, Answer] = MicroBatcher(
            self._send, *grouping, weigh=lambda wanted: len(wanted.encoded), max_weight=MAX_CALL_BYTES
        )
        self.reconfigure = self._groups.reconfigure

    async def classify(self, wanted: Wanted) -> Answer:
        """Classify one image, in a group with those that come meanwhile."""
        if self.state is None:  # else requests would wait their whole deadline for a model that never comes
            await self.ask()
        self._under_way += 1
        try:
            sent = await self._groups.submit(wanted)
        except NotReadyError as error:
            self.trouble = str(error)
            raise
        finally:
            self._under_way -= 1
        self._answered = time.monotonic()
        answer = sent.value
        tracing.record(
            wanted.deadline.origin, "queue", sent.queue_s, sent.model_s, stage="ingress", group=sent.batch_size
        )
        if self.state and answer.model != self.state.card.ref:  # other weights took over
            self.hear()
        return replace(
            answer, timings_ms={**answer.timings_ms, "queue": answer.timings_ms["queue"] + sent.queue_s * 1000}
        )

    async def prove(self) -> None:
        """Return if it has just answered an image, else once it is heard from.

        Raises:
            NotReadyError: It does not answer.
        """
        if self.trouble or time.monotonic() - self._answered > PROOF_S:
            await self.ask()

    async def ask(self) -> ModelState:
        """Hear what it serves; all who ask at a time share one answer.

        Raises:
            NotReadyError: It does not answer.
        """
        return await asyncio.shield(self.hear())

    def hear(self) -> asyncio.Task[ModelState]:
        """Start asking, if nobody does already."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._asking

    async def close(self) -> None:
        """Take no more images; those under way are answered."""
        while self._under_way:
            await asyncio.sleep(ASK_AGAIN_S)
        await self._groups.close()

    async def _ask(self) -> ModelState:
        try:
            self.state = await self._link.ask()
        except NotReadyError as error:
            if self.state is None:  # one that has answered before may just be busy
                self.trouble = str(error)
            raise
        self.trouble = None
        return self.state

    async def _send(self, wanted: list[Wanted]) -> list[Answer | ServiceError]:
        return await self._link.send(wanted, self._under_way)


def grouping(tuning: IngressConfig) -> tuple[BatchConfig, int]:
    """How images are grouped on their way to a variant."""
    return BatchConfig(max_batch_size=tuning.max_group_size, max_batch_wait_ms=0), tuning.max_inflight_groups
