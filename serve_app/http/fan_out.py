"""Stage 1/3 · the images of one request -> the other stages, all at once; each comes back as its own result."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from starlette.datastructures import State

from serve_app.deadline import Deadline, Origin
from serve_app.errors import DeadlineExceededError, ServiceError
from serve_app.http.admission import Permit
from serve_app.http.responses import to_problem, to_result
from serve_app.http.schemas import ImageResult
from serve_app.http.service import Answer, Asked, Choice, Service
from serve_app.http.uploads import Parameters, Upload
from serve_app.messages import Explain
from serve_app.observability.stats import Stats

log = logging.getLogger("serve_app")


class FanOut:
    """Classifies the images of a request concurrently, each under the deadline and counted."""

    def __init__(self, service: Service, stats: Stats) -> None:
        """Send images to this service and count them in these totals."""
        self._service, self._stats = service, stats

    def start(
        self, uploads: Sequence[Upload], parameters: Parameters, choice: Choice, request: State
    ) -> list[asyncio.Task[ImageResult]]:
        """Send all images on their way; no task of these raises.

        Args:
            uploads: The images in their order.
            parameters: What the client asked for, the same for all of them.
            choice: The variant that answers.
            request: What the door knows: ``id`` names it in logs and errors, ``parent`` is its span, ``admitted``
                counts its images.

        Raises:
            OverloadedError, DeadlineExceededError: None of them was sent; see Permit.take.
        """
        request.admitted.take(len(uploads))
        return [
            asyncio.create_task(
                self._one((request.id, index, request.parent), upload, parameters, choice, request.admitted)
            )
            for index, upload in enumerate(uploads)
        ]

    async def _one(
        self,
        origin: Origin,
        upload: Upload,
        parameters: Parameters,
        choice: Choice,
        admitted: Permit,
    ) -> ImageResult:
        worked = False
        request_id, index, _ = origin
        size = 0 if isinstance(upload.encoded, ServiceError) else len(upload.encoded)
        asked = Asked(request_id, index, choice.variant, size, time.perf_counter())
        try:
            answered = await self._answer(upload, parameters, choice, admitted.deadline.of(origin))
            worked = True
        except ServiceError as error:
            failure = error
            worked = not error.retryable
        except Exception:
            log.exception("request %s, image %d", request_id, index)
            failure = ServiceError("this image could not be classified; the server's log says why")
        else:
            self._stats.answered(answered)
            if self._service.log:
                self._service.log.answered(asked, answered)
            return to_result(index, upload.id, answered, parameters, self._service)
        finally:
            admitted.finished(worked)
        self._stats.failed(failure)
        if failure.status in (ServiceError.status, DeadlineExceededError.status):
            log.warning("request %s, image %d: %s", request_id, index, failure)
        if self._service.log:
            self._service.log.failed(asked, failure)
        return ImageResult(index=index, id=upload.id, status="error", error=to_problem(failure, request_id))

    async def _answer(self, upload: Upload, parameters: Parameters, choice: Choice, deadline: Deadline) -> Answer:
        if isinstance(upload.encoded, ServiceError):
            raise upload.encoded
        try:
            with self._stats.in_flight():
                async with asyncio.timeout(deadline.left_s()):
                    top_k = parameters.top_k or self._service.tuning.top_k
                    return await self._service.classify(choice, upload.encoded, top_k, _explain(parameters), deadline)
        except TimeoutError:
            raise deadline.exceeded() from None


async def finish(tasks: Sequence[asyncio.Task[ImageResult]]) -> list[ImageResult]:
    """Wait for all results; when the client went away, nobody waits for the rest."""
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _explain(parameters: Parameters) -> Explain:
    if parameters.explain == "none":
        return None
    return "top" if parameters.explain_class is None else parameters.explain_class
