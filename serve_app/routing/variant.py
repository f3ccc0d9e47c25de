"""One model variant as the ingress reaches it: images go to it in groups, its state is known."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from typing import Protocol

from serve_app.batcher import MicroBatcher
from serve_app.config import BatchConfig, IngressConfig
from serve_app.errors import NotReadyError, OverloadedError, ServiceError
from serve_app.messages import ClassifyRequest, ClassifyResult, ModelState, Outcome, RemoteImage
from serve_app.observability import tracing
from serve_app.settings import MiB

MAX_CALL_BYTES = 32 * MiB  # half of the largest gRPC message that configs/ray.env allows
RETRY_S = 0.5
MAX_RETRY_S = 4.0  # between pings of a variant whose queue is full: each ping takes a place in it
RESERVE = 2  # times what a group takes: under overload that varies; see docs/verified.md
RECENT_S = 1.0  # a result within this time proves more than a ping, which a busy stage may answer too late


class VariantClient(Protocol):
    """The connection to one variant."""

    async def send(self, requests: list[ClassifyRequest[bytes]], in_flight_hint: int) -> list[Outcome]:
        """Classify a group of images; ``in_flight_hint`` is that of ``MicroBatcher.submit``.

        Raises:
            NotReadyError: No replica is available (503).
            OverloadedError: The queues of the next stage are full (503).
        """

    async def fetch(self, image: RemoteImage) -> bytes | ServiceError:
        """Fetch an image by its URL; raises what ``send`` raises."""

    async def fetch_state(self) -> ModelState:
        """Ask one of its replicas for its state.

        Raises:
            NotReadyError: No replica answers (503).
            OverloadedError: The queue is full (503). It may be full of calls that wait for a replica, so this does not
                tell whether there is one.
        """


class Variant:
    """Sends images to one variant in groups and remembers its state."""

    def __init__(self, name: str, client: VariantClient, config: IngressConfig) -> None:
        self.name = name  # key in the setting ``traffic``
        self.state: ModelState | None = None  # what its replicas serve, as last reported
        self.unavailable_reason: str | None = None  # why it gets no requests; None while it gets them
        self.counts: Counter[str] = Counter()  # images by outcome: ``ok`` or the code of the error
        self._client = client
        self._in_flight = 0
        self._last_result = -math.inf
        self._refreshing: asyncio.Task[ModelState] | None = None
        self._groups: MicroBatcher[ClassifyRequest[bytes], ClassifyResult] = MicroBatcher(
            self._send,
            *_grouping(config),
            weigh=lambda request: len(request.image),
            max_weight=MAX_CALL_BYTES,
            refuse=_refuse_late,
        )

    def reconfigure(self, config: IngressConfig) -> None:
        """Group images by other settings."""
        self._groups.reconfigure(*_grouping(config))

    async def classify(self, request: ClassifyRequest[bytes]) -> ClassifyResult:
        """Classify one image, in one call with others that arrive at the same time, or raise ServiceError.

        While all calls are in use, callers take turns.
        """
        if self.state is None:  # else images would wait until their deadline for a model that never comes
            await self.fetch_state()
        self._in_flight += 1
        try:
            sent = await self._groups.submit(request, caller=request.context and request.context.caller)
        except NotReadyError as error:
            self.unavailable_reason = str(error)
            raise
        finally:
            self._in_flight -= 1
        self._last_result = time.monotonic()
        result = sent.value
        tracing.record(request.context, "queue", sent.queue_s, sent.run_s, stage="ingress", group=sent.batch_size)
        if self.state and result.model != self.state.card.ref:  # its weights were replaced
            self.refresh()
        result.timings_ms["queue"] += sent.queue_s * 1000
        return result

    async def fetch(self, image: RemoteImage) -> bytes:
        """Fetch an image by its URL, in a call of its own, or raise ServiceError."""
        encoded = await self._client.fetch(image)
        if isinstance(encoded, ServiceError):
            raise encoded
        return encoded

    async def ensure_alive(self) -> None:
        """Return if it gave a result within the last second; else fetch its state, or raise NotReadyError."""
        if self.unavailable_reason or time.monotonic() - self._last_result > RECENT_S:
            await self.fetch_state()

    async def fetch_state(self) -> ModelState:
        """Return its current state, or raise what VariantClient.fetch_state raises; concurrent callers share a call."""
        return await asyncio.shield(self.refresh())

    def refresh(self) -> asyncio.Task[ModelState]:
        """Start fetching the state, unless a fetch is in progress."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._fetch())
            self._refreshing.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._refreshing

    async def close(self) -> None:
        """Wait for the images in flight, then stop."""
        while self._in_flight:
            await asyncio.sleep(RETRY_S)
        await self._groups.close()

    async def _fetch(self) -> ModelState:
        try:
            self.state = await self._client.fetch_state()
        except NotReadyError as error:
            if self.state is None:  # a variant that has reported before may only be busy
                self.unavailable_reason = str(error)
            raise
        self.unavailable_reason = None
        return self.state

    async def _send(self, requests: list[ClassifyRequest[bytes]]) -> list[Outcome]:
        return await self._client.send(requests, self._in_flight)


def _refuse_late(request: ClassifyRequest[bytes], run_s: float) -> OverloadedError | None:
    """Refuse an image that would miss its deadline in the other stages: it would take the time of one that does not."""
    if request.context is None or request.context.deadline.left_s() > RESERVE * run_s:
        return None
    return OverloadedError("the images before this one took longer than its deadline allows; retry later", run_s)


def _grouping(config: IngressConfig) -> tuple[BatchConfig, int]:
    return BatchConfig(max_batch_size=config.max_group_size, max_batch_wait_ms=0), config.max_inflight_groups
