"""Stage 2/3 · the deployment that decodes uploads and hands the crops on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ray import serve

from serve_app.batcher import Batched
from serve_app.deployments.calls import Handle, call, cores, ping
from serve_app.errors import ServiceError
from serve_app.preprocess import preprocess
from serve_app.schemas import Classification, ImageTransform, PreprocessedImage
from serve_app.service import Answer, Wanted


# Queues are bounded so that overload is refused, not piled up. A call carries a group of
# images and lasts until they are classified.
@serve.deployment(max_ongoing_requests=64, max_queued_requests=1024)
class Preprocessor:
    """Stage 2: decodes uploads, one per core at a time, and hands the crops on."""

    def __init__(self, classifier: Handle, transform: ImageTransform) -> None:
        """Start the threads that decode, so that the replica keeps answering health checks."""
        self._classifier, self._transform = classifier, transform
        self._threads = ThreadPoolExecutor(cores(), thread_name_prefix="decode")

    async def __call__(self, wanted: list[Wanted], company: int, max_pixels: int) -> list[Answer | ServiceError]:
        """Decode and classify images that came together.

        Returns:
            For each, its answer or what is wrong with it: a bad image is an ordinary answer
            here; raised, it would be logged as a crash.
        """
        loop = asyncio.get_running_loop()
        decoded = await asyncio.gather(
            *(loop.run_in_executor(self._threads, self._decode, each, max_pixels) for each in wanted)
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
        await ping(self._classifier, "classify")

    def _decode(self, wanted: Wanted, max_pixels: int) -> tuple[PreprocessedImage, float] | ServiceError:
        start = time.perf_counter()
        try:
            wanted.deadline.check()
            image = preprocess(wanted.encoded, self._transform, max_pixels)
        except ServiceError as error:
            return error
        return image, (time.perf_counter() - start) * 1000

    async def _classify(
        self, good: list[tuple[Wanted, PreprocessedImage, float]], company: int
    ) -> list[Answer | ServiceError]:
        pixels = np.stack([image.pixels for _, image, _ in good])
        asked = [(each.top_k, each.explain, each.deadline) for each, _, _ in good]
        answer: Awaitable[list[Batched[Classification] | ServiceError]]
        answer = self._classifier.remote(pixels, asked, max(company, len(good)))
        try:
            found = await call(answer, "classify")
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
