"""The stages on Ray Serve. Only this file, app.py and the launcher know Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Histogram

from serve_app.api import create_app
from serve_app.batcher import Batched, BatchRecord, MicroBatcher
from serve_app.config import AnswerTuning, BatchTuning, Limits, WeightsSpec, parse
from serve_app.errors import NotReadyError, OverloadedError, ServiceError
from serve_app.preprocess import preprocess
from serve_app.schemas import Classification, ClassifyItem, Explain, ImageTransform, ModelCard, PreprocessedImage
from serve_app.service import Answer

Value = TypeVar("Value")
Handle = DeploymentHandle[Any]
PING_TIMEOUT_S = 2.0
SIZES = [1.0, 2, 4, 8, 16, 32, 64, 128, 256]
MILLISECONDS = [1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]


# Queues are bounded so that overload is refused, not piled up; a request of 64 images must
# fit. The counts of ongoing requests are what keeps the next batch ready while one runs.
@serve.deployment(max_ongoing_requests=16, max_queued_requests=1024)
class Preprocessor:
    """Stage 2: decodes uploads, one at a time per replica."""

    def __init__(self, transform: ImageTransform, max_pixels: int) -> None:
        """Start the thread that decodes, so that the replica keeps answering health checks."""
        self._transform, self._max_pixels = transform, max_pixels
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decode")

    async def __call__(self, encoded: bytes) -> tuple[PreprocessedImage, float] | ServiceError:
        """Decode one image; returns it with the time it took in ms, or what is wrong with it.

        A bad image is an ordinary answer here: raised, it would be logged as a crash.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._decode, encoded)

    async def ping(self) -> None:
        """Answer."""

    def _decode(self, encoded: bytes) -> tuple[PreprocessedImage, float] | ServiceError:
        start = time.perf_counter()
        try:
            image = preprocess(encoded, self._transform, self._max_pixels)
        except ServiceError as error:
            return error
        return image, (time.perf_counter() - start) * 1000


@serve.deployment(max_ongoing_requests=64, max_queued_requests=1024)
class Classifier:
    """Stage 3: a model on one device, fed in batches."""

    def __init__(self, weights: WeightsSpec) -> None:
        """Load, verify and warm the model.

        Raises:
            WeightsError: Fails this deployment, and the application with it.
        """
        # Imported here: only the model's replica pays for torch (seconds and 400 MB).
        from serve_app.classifier import ResNetEngine
        from serve_app.weights import load_model

        model, card = load_model(weights)
        self._engine = ResNetEngine(model, card)
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
            self._engine.classify, tuning, self._record
        )

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new BatchTuning values, at once."""
        self._batcher.reconfigure(parse(BatchTuning, user_config))

    async def __call__(self, item: ClassifyItem, company: int) -> Batched[Classification]:
        """Classify one image in the next batch; see MicroBatcher for ``company``."""
        return await self._batcher.submit(item, company)

    async def ping(self) -> None:
        """Answer."""

    def _record(self, batch: BatchRecord) -> None:
        self._size.observe(batch.size)
        self._model_ms.observe(batch.model_s * 1000)
        for queued in batch.queue_s:
            self._queue_ms.observe(queued * 1000)
        if batch.failed:
            self._failed.inc(batch.failed)


@serve.deployment(max_ongoing_requests=256, max_queued_requests=1024)
@serve.ingress()
class Ingress:
    """Stage 1: HTTP, and the way of an image through the other stages."""

    def __init__(self, preprocessor: Handle, classifier: Handle, card: ModelCard, limits: Limits) -> None:
        """Keep the handles; the app is built by Serve through the hook below."""
        self.card, self.limits, self.tuning = card, limits, AnswerTuning()
        self._preprocessor, self._classifier = preprocessor, classifier
        self._was_ready = False

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Give Serve the HTTP app, once per replica."""
        return create_app(self)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new AnswerTuning values, at once."""
        self.tuning = parse(AnswerTuning, user_config)

    async def classify(self, encoded: bytes, top_k: int, explain: Explain, company: int) -> Answer:
        """See Service.classify."""
        if not self._was_ready:  # else requests would wait their whole deadline for a model that never comes
            await self.check_ready()
        decoded = await _call(self._preprocessor.remote(encoded), "preprocess")
        if isinstance(decoded, ServiceError):
            raise decoded
        image, decode_ms = decoded
        item = ClassifyItem(image.pixels, top_k, explain)
        batched: Batched[Classification] = await _call(self._classifier.remote(item, company), "classify")
        timings = {"decode": decode_ms, "queue": batched.queue_s * 1000, "model": batched.model_s * 1000}
        return Answer(image.info, batched.value, timings, batched.batch_size)

    async def check_ready(self) -> None:
        """See Service.check_ready."""
        stages = {"preprocess": self._preprocessor, "classify": self._classifier}
        await asyncio.gather(*(self._ping(stage, handle) for stage, handle in stages.items()))
        self._was_ready = True

    async def describe(self) -> dict[str, Any]:
        """See Service.describe."""
        status = await asyncio.to_thread(serve.status)
        app = status.applications[serve.get_replica_context().app_name]
        return {
            name: {"status": one.status.value, "replicas": one.replica_states, "message": one.message}
            for name, one in app.deployments.items()
        }

    async def _ping(self, stage: str, handle: Handle) -> None:
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                await _call(handle.ping.remote(), stage)
        except TimeoutError:
            raise NotReadyError(f"the {stage} stage does not answer yet") from None


async def _call(response: Awaitable[Value], stage: str) -> Value:
    """Await another stage; Serve's own errors become ours, before Serve answers them as text."""
    try:
        return await response
    except BackPressureError as error:
        raise OverloadedError(f"too many images wait for the {stage} stage; try again") from error
    except (DeploymentUnavailableError, RayActorError) as error:
        raise NotReadyError(f"the {stage} stage is not available; try again") from error


def _histogram(name: str, description: str, boundaries: list[float], version: str) -> Histogram:
    histogram = Histogram(name, description, boundaries, ("version",))
    histogram.set_default_tags({"version": version})
    return histogram
