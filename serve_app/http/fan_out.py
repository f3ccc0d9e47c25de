"""Classifies the images of one request concurrently; each image gets its own result."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import State

from serve_app.errors import DeadlineExceededError, ServiceError
from serve_app.http.admission import Permit
from serve_app.http.heads.use import HeadUse
from serve_app.http.responses import omit_model, response_model, to_image_result, to_problem
from serve_app.http.schemas import HeadAnswer, ImageResult
from serve_app.http.service import Service
from serve_app.http.uploads import Parameters, Upload
from serve_app.http.url_images import UrlImages
from serve_app.image_url import ImageUrl
from serve_app.messages import ClassifyRequest, ClassifyResult, Explain, Features, Outcome, RequestContext
from serve_app.observability.stats import Stats
from serve_app.routing.traffic_split import VariantChoice

log = logging.getLogger("serve_app")


class FanOut:
    """Sends the images of a request to the router, each under the deadline; counts and logs the outcomes."""

    def __init__(self, service: Service, stats: Stats) -> None:
        self._service, self._stats = service, stats
        self._url_images = UrlImages(service)

    def start(
        self,
        uploads: Sequence[Upload],
        parameters: Parameters,
        choice: VariantChoice,
        state: State,
        heads: HeadUse | None = None,
    ) -> list[asyncio.Task[ImageResult]]:
        """Start classifying all images; the tasks never raise.

        ``state`` is that of the HTTP request, from the middleware: ``id``, ``traceparent`` and ``permit``. Each result
        has what ``heads`` say about the image.

        Raises:
            OverloadedError: Other requests came first; no image was sent (503).
            DeadlineExceededError: The deadline has passed; no image was sent (504).
        """
        permit: Permit = state.permit
        permit.add_images(len(uploads))
        tasks = []
        request_uuid = uuid.uuid4().hex  # a gateway may send the same X-Request-ID with every request
        for index, upload in enumerate(uploads):
            context = RequestContext(state.id, index, permit.deadline, state.traceparent, request_uuid, permit.caller)
            tasks.append(asyncio.create_task(self._classify(upload, context, parameters, choice, permit, heads)))
        return tasks

    async def outcome(
        self, request: ClassifyRequest[bytes], context: RequestContext, choice: VariantChoice, permit: Permit
    ) -> Outcome:
        """Classify one image that ``permit`` counts, until the deadline; any failure is returned as a ServiceError."""
        outcome: Outcome
        try:
            with self._stats.in_flight():
                async with asyncio.timeout(context.deadline.left_s()):
                    outcome = await self._service.router.classify(request, choice)
        except TimeoutError:
            outcome = context.deadline.exceeded()
        except ServiceError as error:
            outcome = error
        except Exception:
            log.exception("request %s, image %d", context.request_id, context.index)
            outcome = ServiceError("this image could not be classified; the server's log has the reason")
        except asyncio.CancelledError:
            permit.finish_image(completed=False)
            raise
        refused = isinstance(outcome, ServiceError) and (outcome.retryable or outcome.status >= 500)
        permit.finish_image(completed=not refused)
        return outcome

    async def _classify(
        self,
        upload: Upload,
        context: RequestContext,
        parameters: Parameters,
        choice: VariantChoice,
        permit: Permit,
        heads: HeadUse | None,
    ) -> ImageResult:
        service, start = self._service, time.perf_counter()
        encoded, fetch_ms = upload.encoded, None
        if isinstance(encoded, ImageUrl):
            encoded = await self._url_images.fetch(encoded, context, choice, permit)
            fetch_ms = (time.perf_counter() - start) * 1000
        explain: Explain = None
        if parameters.explain == "cam" and heads is None:
            explain = "top" if parameters.explain_class is None else parameters.explain_class
        request = ClassifyRequest(
            image=encoded if isinstance(encoded, bytes) else b"",
            top_k=parameters.top_k or service.config.top_k,
            explain=explain,
            context=context,
            max_pixels=service.config.limits.max_pixels,
            measure_stats=service.prediction_log is not None,
            features=self._features(parameters, heads),
        )
        outcome: Outcome
        answers: dict[str, HeadAnswer] | None = None
        if isinstance(encoded, ServiceError):
            outcome = encoded
            permit.finish_image(completed=fetch_ms is None)
        else:
            outcome = await self.outcome(request, context, choice, permit)
        if heads and isinstance(outcome, ClassifyResult):
            try:
                answers = await heads.answers(outcome, parameters, request.top_k, choice, context.deadline)
            except ServiceError as error:
                outcome = error
        if service.prediction_log:
            versions = {name: answer.version for name, answer in (answers or {}).items()}
            service.prediction_log.add(request, choice.variant, outcome, (time.perf_counter() - start) * 1000, versions)
        if isinstance(outcome, ClassifyResult):
            if fetch_ms is not None:
                outcome.timings_ms = {"fetch": fetch_ms, **outcome.timings_ms}
            self._stats.add_result(outcome)
            result = to_image_result(context.index, upload.id, outcome, parameters, service.config.abstain_below)
            return result.model_copy(update={"heads": answers}) if answers else result
        self._stats.add_error(outcome)
        if outcome.status in (ServiceError.status, DeadlineExceededError.status):
            log.warning("request %s, image %d: %s", context.request_id, context.index, outcome)
        problem = to_problem(outcome, context.request_id)
        return ImageResult(index=context.index, id=upload.id, status="error", error=problem)

    def _features(self, parameters: Parameters, heads: HeadUse | None) -> Features:
        if heads:
            return heads.features(parameters)
        log_ = self._service.prediction_log
        return "pooled" if parameters.embed or (log_ is not None and log_.keeps_embeddings) else None


async def gather_results(tasks: Sequence[asyncio.Task[ImageResult]]) -> list[ImageResult]:
    """Wait for all results; cancel the remaining images when the client disconnects."""
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def finish_results(tasks: Sequence[asyncio.Task[ImageResult]], state: State) -> list[ImageResult]:
    """Wait for all results; name the weights in the request's ``state``, and in a result only where they differ."""
    results = await gather_results(tasks)
    if model := response_model(results):
        state.model = model
    return [omit_model(result, model) for result in results]
