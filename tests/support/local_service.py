"""The service in one process, without Ray: the real stages behind the real API."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

from serve_app.batcher import MicroBatcher, ThreadRunner
from serve_app.config import (
    AdmissionConfig,
    BatchConfig,
    EngineConfig,
    JobsConfig,
    KeysConfig,
    LimitsConfig,
    ResponseConfig,
    WeightsConfig,
)
from serve_app.deadline import Deadline
from serve_app.errors import NotReadyError, ServiceError, UnknownModelError
from serve_app.http.auth import Keys
from serve_app.http.service import Answer, Choice, Log
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.weights import load_model
from serve_app.messages import Classification, ClassifyItem, Explain
from serve_app.model_card import ModelCard
from serve_app.observability.feedback_store import Feedback
from serve_app.preprocessing.transform import preprocess
from serve_app.routing.traffic_split import OWN


@cache
def load(weights: WeightsConfig) -> tuple[ResNetEngine, ModelCard]:
    """Load a model once for all tests, on torch: choosing the fastest runtime would take seconds."""
    model, card = load_model(weights)
    return ResNetEngine(model, card, EngineConfig(runtime="torch")), card


class LocalService:
    """Stages 2 and 3 by plain calls.

    Attributes:
        failing: Raised for the next images instead of an answer, to see what the API makes of it.
        delay_s: How much slower each image is.
    """

    def __init__(self, weights: WeightsConfig, limits: LimitsConfig | None = None) -> None:
        engine, self._card = load(weights)
        self.limits, self.tuning, self.admission = limits or LimitsConfig(), ResponseConfig(), AdmissionConfig()
        self.room, self.keys, self.cors_origins = 8, Keys(KeysConfig()), ()
        self.log: Log | None = None
        self.feedback: Feedback | None = None
        self.jobs: JobsConfig | None = None
        self._weights = weights
        self._batcher: MicroBatcher[ClassifyItem, Classification] = MicroBatcher(
            ThreadRunner(engine.classify), BatchConfig()
        )
        self.failing: Exception | None = None
        self.delay_s = 0.0

    def choose(self, asked: str | None = None, client: str | None = None) -> Choice:
        if asked not in (None, OWN):
            raise UnknownModelError(f"X-Model: no variant {asked!r} here")
        return Choice(OWN)

    def cards(self) -> dict[str, ModelCard]:
        return {OWN: self._card}

    async def classify(
        self, choice: Choice, encoded: bytes, top_k: int, explain: Explain, deadline: Deadline
    ) -> Answer:
        await asyncio.sleep(self.delay_s)
        if self.failing:
            raise self.failing
        image = preprocess(encoded, self._card.transform, self.limits.max_pixels)
        batched = await self._batcher.submit(ClassifyItem(image.pixels, top_k, explain))
        times = {"decode": 1.0, "queue": batched.queue_s * 1000, "model": batched.model_s * 1000}
        labels = dict(enumerate(self._card.labels))
        return Answer(
            image.info,
            batched.value,
            self._card.ref,
            labels,
            times,
            batched.batch_size,
            abstain_below=self._card.abstain_below,
        )

    async def recipe(self, variant: str) -> tuple[WeightsConfig, EngineConfig, ModelCard]:
        return self._weights, EngineConfig(), self._card

    async def start_jobs(self) -> None:
        """Nobody works them off: they wait."""

    async def check_ready(self) -> None:
        if isinstance(self.failing, ServiceError):
            raise NotReadyError("the classify stage does not answer yet")

    async def describe(self) -> dict[str, Any]:
        classifier = {"status": "HEALTHY", "replicas": {"RUNNING": 1}, "message": ""}
        return {"deployments": {"Classifier": classifier}}
