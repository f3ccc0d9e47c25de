"""Turns the photos of a request into examples of a head: both views of each photo pass the ordinary stages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from serve_app.errors import DeadlineExceededError, NotReadyError, ServiceError
from serve_app.heads.examples import Example, new_example_id
from serve_app.http.admission import Permit
from serve_app.http.fan_out import FanOut
from serve_app.http.heads.uploads import Photo
from serve_app.http.service import Service
from serve_app.messages import ClassifyRequest, ClassifyResult, RequestContext
from serve_app.model_card import ModelRef
from serve_app.routing.traffic_split import VariantChoice

MAX_IN_FLIGHT = 8  # views of one request: taught photos leave the other places to requests
MAX_RETRY_S = 0.5  # the first refusals of a busy service are waited out in short steps, until the deadline
MAX_ROUNDS = 3  # photos are embedded again if the weights change meanwhile


class PhotoEmbedder:
    """Sends photos to the router, a few at a time, and waits where a request to classify would be refused."""

    def __init__(self, service: Service, fan_out: FanOut) -> None:
        self._service, self._fan_out = service, fan_out

    async def views(
        self, photos: Sequence[Photo], choice: VariantChoice, permit: Permit, request_id: str
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], ModelRef]:
        """Return the embeddings of each photo and of its mirror image, and the weights that made all of them.

        Args:
            photos: At least one.
            choice: The variant whose weights embed them.
            permit: Counts the photos; its deadline holds for all of them.
            request_id: Names the request in logs.

        Raises:
            ServiceError: That of the first photo that failed, with its class and name in the text.
            DeadlineExceededError: The service was too busy until the deadline (504).
            NotReadyError: The weights changed again and again (503).
        """
        views = [(photo, mirror) for photo in photos for mirror in (False, True)]
        results: dict[int, ClassifyResult] = {}
        for _ in range(MAX_ROUNDS):
            missing = [index for index in range(len(views)) if index not in results]
            results |= zip(
                missing, await self._embed([views[i] for i in missing], choice, permit, request_id), strict=True
            )
            model = results[missing[-1]].model  # the weights that answered last are the newest
            results = {index: result for index, result in results.items() if result.model == model}
            if len(results) == len(views):
                break
        else:
            raise NotReadyError("the weights are being replaced; teach the head again in a minute")
        embeddings = [_embedding(results[index]) for index in range(len(views))]
        return list(zip(embeddings[::2], embeddings[1::2], strict=True)), model

    async def _embed(
        self, views: Sequence[tuple[Photo, bool]], choice: VariantChoice, permit: Permit, request_id: str
    ) -> list[ClassifyResult]:
        places = asyncio.Semaphore(MAX_IN_FLIGHT)

        async def embed(index: int, photo: Photo, mirror: bool) -> ClassifyResult:
            async with places:
                return await self._embed_view(
                    RequestContext(request_id, index, permit.deadline), photo, mirror, choice, permit
                )

        tasks = [asyncio.create_task(embed(index, *view)) for index, view in enumerate(views)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _embed_view(
        self, context: RequestContext, photo: Photo, mirror: bool, choice: VariantChoice, permit: Permit
    ) -> ClassifyResult:
        """Embed one view; a refusal that a later try can cure is waited out until the deadline."""
        request = ClassifyRequest(
            photo.encoded,
            top_k=1,
            context=context,
            max_pixels=self._service.config.limits.max_pixels,
            features="pooled",
            mirror=mirror,
        )
        while True:
            try:
                permit.add_images(1)
                outcome = await self._fan_out.outcome(request, context, choice, permit)
            except DeadlineExceededError:
                raise
            except ServiceError as error:  # of add_images
                outcome = error
            if isinstance(outcome, ClassifyResult):
                return outcome
            if not outcome.retryable:
                raise photo.failed(outcome)
            if isinstance(outcome, DeadlineExceededError):
                raise outcome
            await asyncio.sleep(min(outcome.retry_after_s, MAX_RETRY_S))
            permit.deadline.check()


def new_examples(
    photos: Sequence[Photo], views: Sequence[tuple[np.ndarray, np.ndarray]], *, keep_photos: bool
) -> list[Example]:
    """Return an example per photo; ``keep_photos`` says whether the store will hold the files."""
    added = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        Example(
            id=new_example_id(),
            class_name=photo.class_name,
            embedding=embedding,
            mirrored=mirrored,
            photo_sha256=photo.sha256,
            added=added,
            kept_photo=keep_photos,
        )
        for photo, (embedding, mirrored) in zip(photos, views, strict=True)
    ]


def _embedding(result: ClassifyResult) -> np.ndarray:
    assert result.embedding is not None  # the request asked for it
    return result.embedding
