"""The service in one process, without Ray: the real stages behind the real API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.batcher import MicroBatcher, ThreadRunner
from serve_app.config import (
    BatchConfig,
    EngineConfig,
    IngressConfig,
    KeysConfig,
    LimitsConfig,
    WeightsConfig,
)
from serve_app.errors import NotReadyError, ServiceError
from serve_app.fetching.fetch import ImageFetcher
from serve_app.heads.examples import Example
from serve_app.heads.fit import Fitted, fit
from serve_app.heads.registry import HeadRegistry
from serve_app.heads.store import HeadStore
from serve_app.heads_config import HeadsConfig
from serve_app.http.auth import ApiKeys
from serve_app.http.service import Heads
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.weights import load_weights
from serve_app.messages import ClassifyRequest, ClassifyResult, ModelState, Outcome, RemoteImage
from serve_app.model_card import ModelCard, ModelRef
from serve_app.observability.feedback_store import Feedback
from serve_app.observability.prediction_log import PredictionLog
from serve_app.preprocessing.transform import preprocess
from serve_app.routing.router import VariantRouter
from serve_app.routing.shadow import Comparison


@cache
def load(weights: WeightsConfig) -> tuple[ResNetEngine, ModelCard]:
    """Load a model once for all tests, on torch: choosing the fastest runtime would take seconds."""
    arrays, card = load_weights(weights)
    return ResNetEngine(arrays, card, EngineConfig(runtime="torch")), card


class NoMetrics:
    """Counts nothing."""

    def add_result(self, variant: str, result: ClassifyResult, seconds: float) -> None: ...

    def add_error(self, variant: str, code: str) -> None: ...

    def add_comparison(self, variant: str, version: str, comparison: Comparison) -> None: ...


class LocalClient:
    """Stages 2 and 3 by plain calls.

    Attributes:
        failing: Raised instead of a result, to see how the API reports it.
        delay_s: Additional time per call, in seconds.
        fetcher: Fetches images by URL.
        weights: What it serves.
    """

    def __init__(self, weights: WeightsConfig) -> None:
        self.failing: Exception | None = None
        self.delay_s = 0.0
        self.fetcher = ImageFetcher()
        self.swap(weights)

    def swap(self, weights: WeightsConfig) -> None:
        """Serve other weights from now on."""
        engine, self.card = load(weights)
        self.weights = weights
        self._batcher: MicroBatcher[ClassifyRequest[np.ndarray], ClassifyResult] = MicroBatcher(
            ThreadRunner(engine.classify), BatchConfig()
        )

    async def send(self, requests: list[ClassifyRequest[bytes]], in_flight_hint: int) -> list[Outcome]:
        await asyncio.sleep(self.delay_s)
        if self.failing:
            raise self.failing
        return await asyncio.gather(*map(self._classify, requests))

    async def fetch(self, image: RemoteImage) -> bytes | ServiceError:
        return await self.fetcher.fetch(image)

    async def fetch_state(self) -> ModelState:
        if isinstance(self.failing, ServiceError):
            raise NotReadyError("the classify stage does not answer yet")
        return ModelState(card=self.card, weights=self.weights)

    async def _classify(self, request: ClassifyRequest[bytes]) -> Outcome:
        try:
            pixels, info = preprocess(request.image, self.card.transform, request.max_pixels)
        except ServiceError as error:
            return error
        if request.mirror:
            pixels = np.ascontiguousarray(np.fliplr(pixels))
        done = await self._batcher.submit(request.with_crop(pixels))
        result = done.value
        result.image, result.batch_size = info, done.batch_size
        result.timings_ms = {"decode": 1.0, "queue": done.queue_s * 1000, "model": done.run_s * 1000}
        return result


class LocalService:
    """Implements http.service.Service.

    Attributes:
        client: The connection to the only variant.
    """

    def __init__(self, weights: WeightsConfig, limits: LimitsConfig | None = None) -> None:
        self.config = IngressConfig(limits=limits or LimitsConfig(), max_inflight_groups=1, max_group_size=8)
        self.keys = ApiKeys(KeysConfig())
        self.prediction_log: PredictionLog | None = None
        self.feedback: Feedback | None = None
        self.heads: Heads | None = None
        self.client = LocalClient(weights)
        self.router = VariantRouter(lambda name: self.client, NoMetrics())
        self.router.reconfigure(self.config)
        # As a started replica does, it knows its model before the first request.
        self.router._variant("main").state = ModelState(card=self.client.card, weights=weights)

    def configure(self, **settings: Any) -> None:
        """Change settings live."""
        self.config = self.config.model_copy(update=settings)

    def keep_heads(self, config: HeadsConfig) -> None:
        """Switch heads on. No thread follows the store: every route looks at the disk itself."""
        self.configure(heads=config)
        store = HeadStore(Path(config.folder), config.keep_versions)
        self.heads = Heads(config, store, HeadRegistry(store))

    async def fit_head(self, examples: Sequence[Example], backbone: ModelRef) -> Fitted:
        """Fit in a thread of this process."""
        return await asyncio.to_thread(fit, examples, backbone)

    async def prepare_fit(self) -> None:
        """Prepare nothing: the first fit imports its libraries."""

    async def start_jobs(self) -> None:
        """Start nothing: jobs stay queued."""

    async def describe(self) -> dict[str, Any]:
        classifier = {"status": "HEALTHY", "replicas": {"RUNNING": 1}, "message": ""}
        return {"deployments": {"Classifier": classifier}, "refused": None}
