"""The stages on Ray Serve. Only this file, app.py and the launcher know Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Histogram

from serve_app.api import create_app
from serve_app.batcher import Batched, BatchRecord, InThread, MicroBatcher
from serve_app.config import AnswerTuning, BatchTuning, EngineSpec, IngressTuning, Limits, MiB, WeightsSpec, parse
from serve_app.errors import NotReadyError, OverloadedError, ServiceError
from serve_app.preprocess import preprocess
from serve_app.schemas import Classification, ClassifyItem, Explain, ImageTransform, ModelCard, PreprocessedImage
from serve_app.service import Answer, Wanted

log = logging.getLogger("serve_app")
Value = TypeVar("Value")
Handle = DeploymentHandle[Any]
PING_TIMEOUT_S = 2.0
MAX_CALL_BYTES = 32 * MiB  # half of what configs/ray.env lets a call carry
SIZES = [1.0, 2, 4, 8, 16, 32, 64, 128, 256]
MILLISECONDS = [1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]


# Queues are bounded so that overload is refused, not piled up. A call carries a group of
# images and lasts until they are classified.
@serve.deployment(max_ongoing_requests=64, max_queued_requests=1024)
class Preprocessor:
    """Stage 2: decodes uploads, one per core at a time, and hands the crops on."""

    def __init__(self, classifier: Handle, transform: ImageTransform, max_pixels: int) -> None:
        """Start the threads that decode, so that the replica keeps answering health checks."""
        self._classifier, self._transform, self._max_pixels = classifier, transform, max_pixels
        self._threads = ThreadPoolExecutor(_cores(), thread_name_prefix="decode")

    async def __call__(self, wanted: list[Wanted], company: int) -> list[Answer | ServiceError]:
        """Decode and classify images that came together.

        Returns:
            For each, its answer or what is wrong with it: a bad image is an ordinary answer
            here; raised, it would be logged as a crash.
        """
        loop = asyncio.get_running_loop()
        decoded = await asyncio.gather(
            *(loop.run_in_executor(self._threads, self._decode, each.encoded) for each in wanted)
        )
        good = [
            (each, *image_and_ms)
            for each, image_and_ms in zip(wanted, decoded, strict=True)
            if not isinstance(image_and_ms, ServiceError)
        ]
        answers: Iterator[Answer | ServiceError] = iter(await self._classify(good, company) if good else ())
        return [failed if isinstance(failed, ServiceError) else next(answers) for failed in decoded]

    async def ping(self) -> None:
        """Answer, if the next stage does.

        Raises:
            NotReadyError: It does not.
        """
        await _ping(self._classifier, "classify")

    def _decode(self, encoded: bytes) -> tuple[PreprocessedImage, float] | ServiceError:
        start = time.perf_counter()
        try:
            image = preprocess(encoded, self._transform, self._max_pixels)
        except ServiceError as error:
            return error
        return image, (time.perf_counter() - start) * 1000

    async def _classify(
        self, good: list[tuple[Wanted, PreprocessedImage, float]], company: int
    ) -> list[Answer | ServiceError]:
        pixels = np.stack([image.pixels for _, image, _ in good])
        asked = [(each.top_k, each.explain) for each, _, _ in good]
        call: Awaitable[list[Batched[Classification] | ServiceError]]
        call = self._classifier.remote(pixels, asked, max(company, len(good)))
        try:
            found = await _call(call, "classify")
        except ServiceError as error:
            return [error] * len(good)
        return [
            batched
            if isinstance(batched, ServiceError)
            else Answer(
                image.info,
                batched.value,
                {"decode": decode_ms, "queue": batched.queue_s * 1000, "model": batched.model_s * 1000},
                batched.batch_size,
            )
            for (_, image, decode_ms), batched in zip(good, found, strict=True)
        ]


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
        self._engine = ResNetEngine(model, card, engine, _cores())
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
            InThread(self._engine.classify, self._engine.lanes), tuning, self._engine.lanes, self._record
        )

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new BatchTuning values, at once."""
        tuning = parse(BatchTuning, user_config)
        self._engine.warm_up(tuning.max_batch)
        self._batcher.reconfigure(tuning, self._engine.lanes)

    async def __call__(
        self, pixels: np.ndarray, asked: list[tuple[int, Explain]], company: int
    ) -> list[Batched[Classification] | ServiceError]:
        """Classify crops in the next batches.

        Args:
            pixels: uint8, (N, crop_px, crop_px, 3).
            asked: For each, top_k and the class to explain.
            company: See MicroBatcher.
        """
        items = [ClassifyItem(crop, *each) for crop, each in zip(pixels, asked, strict=True)]
        return await asyncio.gather(*(self._one(item, company) for item in items))

    async def ping(self) -> None:
        """Answer."""

    async def _one(self, item: ClassifyItem, company: int) -> Batched[Classification] | ServiceError:
        try:
            return await self._batcher.submit(item, company)
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


@serve.deployment(max_ongoing_requests=256, max_queued_requests=1024)
@serve.ingress()
class Ingress:
    """Stage 1: HTTP, and the way of an image to the other stages."""

    def __init__(self, preprocessor: Handle, card: ModelCard, limits: Limits) -> None:
        """Keep the handle; the app is built by Serve through the hook below."""
        self.card, self.limits = card, limits
        self.tuning: AnswerTuning = IngressTuning()
        self._preprocessor = preprocessor
        self._company = 1
        self._was_ready = False
        self._groups: MicroBatcher[Wanted, Answer] = MicroBatcher(
            self._send, *_grouping(IngressTuning()), weigh=lambda wanted: len(wanted.encoded), max_weight=MAX_CALL_BYTES
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Give Serve the HTTP app, once per replica."""
        return create_app(self)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new IngressTuning values, at once."""
        self.tuning = tuning = parse(IngressTuning, user_config)
        self._groups.reconfigure(*_grouping(tuning))

    async def classify(self, encoded: bytes, top_k: int, explain: Explain, company: int) -> Answer:
        """See Service.classify."""
        if not self._was_ready:  # else requests would wait their whole deadline for a model that never comes
            await self.check_ready()
        self._company = company
        sent = await self._groups.submit(Wanted(encoded, top_k, explain))
        answer = sent.value
        timings = {**answer.timings_ms, "queue": answer.timings_ms["queue"] + sent.queue_s * 1000}
        return replace(answer, timings_ms=timings)

    async def check_ready(self) -> None:
        """See Service.check_ready."""
        await _ping(self._preprocessor, "preprocess")
        self._was_ready = True

    async def _send(self, wanted: list[Wanted]) -> list[Answer | ServiceError]:
        return await _call(self._preprocessor.remote(wanted, self._company), "preprocess")

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


async def _ping(handle: Handle, stage: str) -> None:
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


def _cores() -> int:
    """CPU cores for this replica: those that Ray reserved for it, or all of its node if it reserved none."""
    context = ray.get_runtime_context()
    reserved: dict[str, float] = context.get_assigned_resources()  # type: ignore[no-untyped-call] # Ray leaves it so
    if cores := int(reserved.get("CPU", 0)):
        return cores
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call] # Ray leaves it so
    here = next(node for node in nodes if node["NodeID"] == context.get_node_id())
    return max(1, int(here["Resources"].get("CPU", 1)))


def _histogram(name: str, description: str, boundaries: list[float], version: str) -> Histogram:
    histogram = Histogram(name, description, boundaries, ("version",))
    histogram.set_default_tags({"version": version})
    return histogram
