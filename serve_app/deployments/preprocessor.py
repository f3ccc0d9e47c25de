"""Stage 2/3 · the deployment that decodes uploads and hands the crops on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ray import serve

from serve_app.batcher import Batched
from serve_app.deployments.handles import Handle, call, cores, log_with_serve, ping, stay_on_loopback
from serve_app.errors import NotReadyError, ServiceError
from serve_app.http.service import Answer, Wanted
from serve_app.messages import ImageStats, ModelState, Named, PreprocessedImage
from serve_app.model_card import ImageTransform
from serve_app.observability import tracing
from serve_app.preprocessing.transform import look, preprocess
from serve_app.scheduling import enter_idle_scheduling, restore_scheduling

ASK_AGAIN_S = 0.5
Decoded = tuple[PreprocessedImage, ImageStats | None, float]  # with the milliseconds it took


# Queues are bounded so that overload is refused, not piled up. A call carries a group of
# images and lasts until they are classified.
@serve.deployment(max_ongoing_requests=64, max_queued_requests=1024)
class Preprocessor:
    """Stage 2: decodes uploads, one per core at a time, and hands the crops on."""

    async def __init__(self, classifier: Handle, transform: ImageTransform) -> None:  # type: ignore[misc] # Serve awaits it
        """Start the threads that decode, so that the replica keeps answering health checks.

        Returns once a model takes these crops: while a new version's does not start, its preprocess stage
        must not take requests either.
        """
        enter_idle_scheduling()
        stay_on_loopback()
        log_with_serve()
        self._classifier, self._transform = classifier, transform
        self._cores = cores()
        self._threads = ThreadPoolExecutor(self._cores, thread_name_prefix="decode")
        while not await self._fits():
            await asyncio.sleep(ASK_AGAIN_S)
        restore_scheduling()

    async def __call__(self, wanted: list[Wanted], company: int) -> list[Answer | ServiceError]:
        """Decode and classify images that came together.

        Returns:
            For each, its answer or what is wrong with it: a bad image is an ordinary answer
            here; raised, it would be logged as a crash.
        """
        decoded = await self._decode_all(wanted)
        good = [
            (each, *found) for each, found in zip(wanted, decoded, strict=True) if not isinstance(found, ServiceError)
        ]
        answers: Iterator[Answer | ServiceError] = iter(await self._classify(good, company) if good else ())
        return [failed if isinstance(failed, ServiceError) else next(answers) for failed in decoded]

    async def ping(self) -> ModelState:
        """Say what the next stage serves.

        Raises:
            NotReadyError: It does not answer.
        """
        return await ping(self._classifier, "classify")

    async def _fits(self) -> bool:
        try:
            found = (await self.ping()).card.transform
        except NotReadyError:
            return False
        return (found.resize_px, found.crop_px) == (self._transform.resize_px, self._transform.crop_px)

    async def _decode_all(self, wanted: list[Wanted]) -> list[Decoded | ServiceError]:
        """On all threads, each of which takes the next image when it is done with one: to call the loop back costs."""
        left = iter(enumerate(wanted))
        decoded: dict[int, Decoded | ServiceError] = {}

        def work() -> None:
            for number, each in left:
                decoded[number] = self._decode(each)

        loop = asyncio.get_running_loop()
        threads = min(self._cores, len(wanted))
        try:
            await asyncio.gather(*(loop.run_in_executor(self._threads, work) for _ in range(threads)))
        finally:
            list(left)  # who gives up waiting wants none of the others
        return [decoded[number] for number in range(len(wanted))]

    def _decode(self, wanted: Wanted) -> Decoded | ServiceError:
        start, failed = time.perf_counter(), None
        try:
            wanted.deadline.check()
            image = preprocess(wanted.encoded, self._transform, wanted.max_pixels)
            seen = look(image.pixels) if wanted.look else None
        except ServiceError as error:
            failed = error
            return error
        finally:
            seconds = time.perf_counter() - start
            tracing.record(wanted.deadline.origin, "preprocess", seconds, error=failed and failed.code)
        return image, seen, seconds * 1000

    async def _classify(
        self, good: list[tuple[Wanted, PreprocessedImage, ImageStats | None, float]], company: int
    ) -> list[Answer | ServiceError]:
        pixels = np.stack([image.pixels for _, image, _, _ in good])
        asked = [(each.top_k, each.explain, each.deadline) for each, *_ in good]

        def send() -> Awaitable[list[Batched[Named] | ServiceError]]:
            return self._classifier.remote(pixels, asked, max(company, len(good)))

        try:
            found = await call(send, "classify")
        except ServiceError as error:
            return [error] * len(good)
        return [
            batched
            if isinstance(batched, ServiceError)
            else Answer(
                image.info,
                batched.value.classification,
                batched.value.model,
                batched.value.labels,
                {"decode": decode_ms, "queue": batched.queue_s * 1000, "model": batched.model_s * 1000},
                batched.batch_size,
                seen,
                batched.value.abstain_below,
            )
            for (_, image, seen, decode_ms), batched in zip(good, found, strict=True)
        ]
