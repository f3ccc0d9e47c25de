"""Stage 1/3 · the deployment that answers HTTP and sends images to the other stages in groups."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from ray import serve

from serve_app.api import create_app
from serve_app.batcher import MicroBatcher
from serve_app.config import AnswerTuning, BatchTuning, IngressTuning, MiB, parse
from serve_app.deadline import Deadline
from serve_app.deployments.calls import Handle, call, ping
from serve_app.errors import ServiceError
from serve_app.keys import Keys
from serve_app.schemas import Explain, ModelCard
from serve_app.service import Answer, Wanted

PROOF_S = 1.0  # an answer that recent says more than a ping, for which a busy stage may be too late
MAX_CALL_BYTES = 32 * MiB  # half of what configs/ray.env lets a call carry


# The door (admission.py) refuses what is too much: Serve's own queue, which it cannot see, must not fill first.
@serve.deployment(max_ongoing_requests=10_000)
@serve.ingress()
class Ingress:
    """Stage 1: HTTP, and the way of an image to the other stages."""

    def __init__(self, preprocessor: Handle, card: ModelCard) -> None:
        """Keep the handle; the app is built by Serve through the hook below."""
        self.card = card
        self._adopt(IngressTuning())
        self._preprocessor = preprocessor
        self._under_way = 0
        self._was_ready = False
        self._answered = -math.inf
        self._groups: MicroBatcher[Wanted, Answer] = MicroBatcher(
            self._send, *_grouping(IngressTuning()), weigh=lambda wanted: len(wanted.encoded), max_weight=MAX_CALL_BYTES
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Give Serve the HTTP app, once per replica."""
        return create_app(self)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new IngressTuning values, at once."""
        tuning = parse(IngressTuning, user_config)
        self._adopt(tuning)
        self._groups.reconfigure(*_grouping(tuning))

    def _adopt(self, tuning: IngressTuning) -> None:
        self.keys = Keys(tuning.keys)  # first: where these cannot be read, nothing changes
        self.tuning: AnswerTuning = tuning
        self.limits, self.door, self.cors_origins = tuning.limits, tuning.door, tuning.cors_origins
        self.room = tuning.lanes * tuning.max_group

    async def classify(self, encoded: bytes, top_k: int, explain: Explain, deadline: Deadline) -> Answer:
        """See Service.classify."""
        if not self._was_ready:  # else requests would wait their whole deadline for a model that never comes
            await self.check_ready()
        self._under_way += 1
        try:
            sent = await self._groups.submit(Wanted(encoded, top_k, explain, deadline))
        finally:
            self._under_way -= 1
        self._answered = time.monotonic()
        answer = sent.value
        timings = {**answer.timings_ms, "queue": answer.timings_ms["queue"] + sent.queue_s * 1000}
        return replace(answer, timings_ms=timings)

    async def check_ready(self) -> None:
        """See Service.check_ready."""
        if time.monotonic() - self._answered > PROOF_S:
            await ping(self._preprocessor, "preprocess")
        self._was_ready = True

    async def _send(self, wanted: list[Wanted]) -> list[Answer | ServiceError]:
        return await call(self._preprocessor.remote(wanted, self._under_way, self.limits.max_pixels), "preprocess")

    async def describe(self) -> dict[str, Any]:
        """See Service.describe."""
        status = await asyncio.to_thread(serve.status)
        app = status.applications[serve.get_replica_context().app_name]
        return {
            name: {"status": one.status.value, "replicas": one.replica_states, "message": one.message}
            for name, one in app.deployments.items()
        }


def _grouping(tuning: IngressTuning) -> tuple[BatchTuning, int]:
    return BatchTuning(max_batch=tuning.max_group, max_wait_ms=0), tuning.lanes
