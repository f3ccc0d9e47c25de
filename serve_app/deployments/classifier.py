"""Stage 3/3 · the deployment that feeds a model with batches."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
from ray import serve
from ray.serve.metrics import Counter, Histogram

from serve_app.batcher import Batched, BatchRecord, InThread, MicroBatcher
from serve_app.config import BatchTuning, EngineSpec, WeightsSpec, parse
from serve_app.deadline import Deadline
from serve_app.deployments.calls import cores
from serve_app.errors import ServiceError
from serve_app.schemas import Classification, ClassifyItem, Explain

log = logging.getLogger("serve_app")
SIZES = [1.0, 2, 4, 8, 16, 32, 64, 128, 256]
MILLISECONDS = [1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]


@serve.deployment(max_ongoing_requests=64, max_queued_requests=1024)
class Classifier:
    """Stage 3: a model on one device, fed in batches."""

    def __init__(self, weights: WeightsSpec, engine: EngineSpec) -> None:
        """Load, verify and warm the model; it uses the cores that Ray gave this replica.

        Raises:
            WeightsError, EngineError: Fails this deployment, and the application with it.
        """
        # Imported here: only the model's replica pays for torch (seconds and 400 MB).
        from serve_app.classifier import ResNetEngine
        from serve_app.weights import load_model

        model, card = load_model(weights)
        self._engine = ResNetEngine(model, card, engine, cores())
        tuning = BatchTuning()
        self._engine.warm_up(tuning.max_batch)
        self._size = _histogram("classifier_batch_size", "Images in a batch as formed.", SIZES, card.version)
        self._queue_ms = _histogram(
            "classifier_queue_ms", "Wait of an image for its batch.", MILLISECONDS, card.version
        )
        self._model_ms = _histogram("classifier_model_ms", "Time of a batch in the model.", MILLISECONDS, card.version)
        self._failed = Counter("classifier_failed_images", "Images whose batch raised.", ("version",))
        self._failed.set_default_tags({"version": card.version})
        self._batcher: MicroBatcher[ClassifyItem, Classification] = MicroBatcher(
            InThread(self._engine.classify, self._engine.lanes),
            tuning,
            self._engine.lanes,
            self._engine.lanes_are_cores,
            self._record,
        )

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new BatchTuning values, at once."""
        tuning = parse(BatchTuning, user_config)
        self._engine.warm_up(tuning.max_batch)
        self._batcher.reconfigure(tuning, self._engine.lanes)

    async def __call__(
        self, pixels: np.ndarray, asked: list[tuple[int, Explain, Deadline]], company: int
    ) -> list[Batched[Classification] | ServiceError]:
        """Classify crops in the next batches.

        Args:
            pixels: uint8, (N, crop_px, crop_px, 3).
            asked: For each, top_k, the class to explain and when its client stops waiting.
            company: See MicroBatcher.
        """
        return await asyncio.gather(
            *(
                self._one(ClassifyItem(crop, top_k, explain), deadline, company)
                for crop, (top_k, explain, deadline) in zip(pixels, asked, strict=True)
            )
        )

    async def ping(self) -> None:
        """Answer."""

    async def _one(
        self, item: ClassifyItem, deadline: Deadline, company: int
    ) -> Batched[Classification] | ServiceError:
        try:
            async with asyncio.timeout(deadline.left_s()):  # one that gives up waiting is in no batch
                return await self._batcher.submit(item, company)
        except TimeoutError:
            return deadline.exceeded()
        except Exception:
            log.exception("the model failed on an image")
            return ServiceError("the model failed on this image; the server's log says why")

    def _record(self, batch: BatchRecord) -> None:
        self._size.observe(batch.size)
        self._model_ms.observe(batch.model_s * 1000)
        for queued in batch.queue_s:
            self._queue_ms.observe(queued * 1000)
        if batch.failed:
            self._failed.inc(batch.failed)


def _histogram(name: str, description: str, boundaries: list[float], version: str) -> Histogram:
    histogram = Histogram(name, description, boundaries, ("version",))
    histogram.set_default_tags({"version": version})
    return histogram
