"""Stage 2: the deployment that fetches images by URL, decodes images and sends the crops to the model."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from ray import serve
from ray.serve.metrics import Histogram

from serve_app.deployments.handles import Handle, LocalHandle, call, cores, ping
from serve_app.deployments.metrics import MILLISECONDS
from serve_app.deployments.ray_internals import prepare_replica
from serve_app.errors import NotReadyError, OverloadedError, ServiceError
from serve_app.fetching.fetch import ImageFetcher
from serve_app.messages import ClassifyRequest, ClassifyResult, ImageInfo, ImageStats, ModelState, Outcome, RemoteImage
from serve_app.model_card import ImageTransform
from serve_app.observability import tracing
from serve_app.preprocessing.transform import image_stats, preprocess
from serve_app.scheduling import restore_scheduling

RETRY_S = 0.5
MAX_FETCHES = 32  # half of max_ongoing_requests: slow web servers leave the other half to images that are here
log = logging.getLogger("serve_app")


class _Preprocessed(NamedTuple):
    request: ClassifyRequest[np.ndarray]
    info: ImageInfo
    stats: ImageStats | None
    decode_ms: float


# Bounded queues refuse overload instead of piling it up. A call carries a group of images and lasts until the model
# has classified them.
@serve.deployment(max_ongoing_requests=64, max_queued_requests=1024)
class Preprocessor:
    """Decodes uploads, one per core at a time, in threads that leave the event loop free for health checks.

    It starts once a model takes its crops: a new version's Preprocessor gets no requests before its model is ready.
    """

    async def __init__(self, classifier: Handle | LocalHandle, transform: ImageTransform) -> None:  # type: ignore[misc] # Serve awaits it
        self._check_ray = prepare_replica()
        self._classifier, self._transform = classifier, transform
        self._cores = cores()
        self._fetcher, self._fetches = ImageFetcher(), 0
        self._fetch_ms = Histogram("preprocessor_fetch_ms", "Time to fetch an image by URL.", MILLISECONDS, ("code",))
        self._threads = ThreadPoolExecutor(self._cores, thread_name_prefix="decode")
        while not await self._model_fits():
            await asyncio.sleep(RETRY_S)
        if not isinstance(classifier, LocalHandle):  # else this process has a model to start, too
            restore_scheduling()

    async def __call__(self, requests: list[ClassifyRequest[bytes]], in_flight_hint: int) -> list[Outcome]:
        """Decode and classify a group of images; see MicroBatcher.submit for ``in_flight_hint``.

        Returns:
            One result or error per image. Errors are returned: Ray Serve would log a raised one as a crash.
        """
        decoded = await self._preprocess_all(requests)
        good = [image for image in decoded if isinstance(image, _Preprocessed)]
        outcomes = iter(await self._classify(good, max(in_flight_hint, len(good))) if good else ())
        return [next(outcomes) if isinstance(image, _Preprocessed) else image for image in decoded]

    async def fetch(self, image: RemoteImage) -> bytes | ServiceError:
        """Fetch an image by its URL; the ingress sends it back with others to be classified."""
        if self._fetches >= MAX_FETCHES:
            return OverloadedError(f"{MAX_FETCHES} images by URL are already being fetched; retry later")
        start = time.perf_counter()
        self._fetches += 1
        try:
            encoded = await self._fetcher.fetch(image)
        finally:
            self._fetches -= 1
        seconds, code = time.perf_counter() - start, encoded.code if isinstance(encoded, ServiceError) else None
        self._fetch_ms.observe(seconds * 1000, {"code": code or "ok"})
        tracing.record(image.context, "fetch", seconds, error=code)
        return encoded

    async def check_health(self) -> None:
        """Check that Ray works as this code expects; Ray Serve calls this before the first request and regularly."""
        self._check_ray()

    async def ping(self) -> ModelState:
        """Return which model the next stage serves; NotReadyError (503) if it does not answer."""
        return await ping(self._classifier, "classify")

    async def _model_fits(self) -> bool:
        try:
            transform = (await self.ping()).card.transform
        except NotReadyError:
            return False
        return (transform.resize_px, transform.crop_px) == (self._transform.resize_px, self._transform.crop_px)

    async def _preprocess_all(self, requests: list[ClassifyRequest[bytes]]) -> list[_Preprocessed | ServiceError]:
        """Decode on all threads; each takes the next image itself. A trip to the event loop per image cost 0.2 ms.

        An image for which there was no memory is decoded again when the group's other images have been decoded.
        """
        remaining = iter(enumerate(requests))
        decoded: dict[int, _Preprocessed | ServiceError] = {}
        without_memory: list[int] = []

        def work() -> None:
            for index, request in remaining:
                try:
                    decoded[index] = self._preprocess(request)
                except MemoryError:
                    without_memory.append(index)

        def retry() -> None:
            for index in without_memory:
                try:
                    decoded[index] = self._preprocess(requests[index])
                except MemoryError:
                    decoded[index] = OverloadedError("there is no memory to decode this image; retry later")

        loop = asyncio.get_running_loop()
        threads = min(self._cores, len(requests))
        try:
            await asyncio.gather(*(loop.run_in_executor(self._threads, work) for _ in range(threads)))
            if without_memory:
                await loop.run_in_executor(self._threads, retry)
        finally:
            list(remaining)  # the caller was cancelled: skip the remaining images
        return [decoded[index] for index in range(len(requests))]

    def _preprocess(self, request: ClassifyRequest[bytes]) -> _Preprocessed | ServiceError:
        """Decode one image. Every error but MemoryError is returned, so that it leaves the group's others alone."""
        start, context, failure = time.perf_counter(), request.context, None
        try:
            if context:
                context.deadline.check()
            pixels, info = preprocess(request.image, self._transform, request.max_pixels)
            stats = image_stats(pixels) if request.measure_stats else None
            if request.mirror:
                pixels = np.ascontiguousarray(np.fliplr(pixels))  # contiguous: such an array is pickled without a copy
        except MemoryError:
            raise
        except ServiceError as error:
            failure = error
        except Exception:
            # The id is in the text: this thread's log context belongs to no request.
            log.exception("request %s, image %s", *((context.request_id, context.index) if context else (None, None)))
            failure = ServiceError("this image could not be decoded; the server's log has the reason")
        seconds = time.perf_counter() - start
        tracing.record(context, "preprocess", seconds, error=failure and failure.code)
        return failure or _Preprocessed(request.with_crop(pixels), info, stats, seconds * 1000)

    async def _classify(self, images: list[_Preprocessed], in_flight_hint: int) -> list[Outcome]:
        requests = [image.request for image in images]
        try:
            outcomes: list[Outcome] = await call(lambda: self._classifier.remote(requests, in_flight_hint), "classify")
        except ServiceError as error:
            return [error] * len(images)
        for image, outcome in zip(images, outcomes, strict=True):
            if isinstance(outcome, ClassifyResult):
                outcome.image, outcome.image_stats = image.info, image.stats
                outcome.timings_ms = {"decode": image.decode_ms, **outcome.timings_ms}
        return outcomes
