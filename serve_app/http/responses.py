"""Results and errors as HTTP responses: JSON, problem+json, Server-Timing, streams of JSON lines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from statistics import fmean

from starlette.datastructures import State
from starlette.responses import Response

from serve_app.errors import NotReadyError, OverloadedError, ServiceError
from serve_app.http.schemas import ClassifyResponse, Explanation, ImageResult, Prediction, Problem, Summary, Uncertainty
from serve_app.http.uploads import Parameters
from serve_app.messages import ActivationMap, ClassifyResult
from serve_app.model_card import ModelRef


def to_image_result(
    index: int, name: str | None, result: ClassifyResult, parameters: Parameters, abstain_below: float | None
) -> ImageResult:
    """Convert the result of one image to its JSON; ``abstain_below`` None takes the threshold of the model card."""
    threshold = result.abstain_below if abstain_below is None else abstain_below
    return ImageResult(
        index=index,
        id=name,
        status="ok",
        image=result.image,
        predictions=[
            Prediction(label=label, score=score, class_id=class_id)
            for label, score, class_id in zip(result.labels, result.scores, result.class_ids, strict=True)
            if score >= parameters.min_score
        ],
        uncertainty=Uncertainty(margin=result.margin, entropy=result.entropy, abstain=result.scores[0] < threshold),
        timings_ms={phase: round(ms, 3) for phase, ms in result.timings_ms.items()},
        batch_size=result.batch_size,
        explanation=to_explanation(result.activation_map) if result.activation_map else None,
        # The prediction log may have asked for it too.
        embedding=result.embedding.tolist() if parameters.embed and result.embedding is not None else None,
        model=result.model,
    )


def to_problem(error: ServiceError, request_id: str | None) -> Problem:
    """Convert an error to problem+json (RFC 9457)."""
    return Problem(
        type=f"/problems/{error.code.replace('_', '-')}",
        title=error.title,
        status=error.status,
        code=error.code,
        detail=str(error),
        retryable=error.retryable,
        retry_after_s=error.retry_after_s if error.retryable else None,
        request_id=request_id,
    )


def problem_response(problem: Problem) -> Response:
    """Make a response of a problem, with Retry-After if a retry makes sense."""
    return Response(
        problem.model_dump_json(exclude_none=True), problem.status, retry_headers(problem), "application/problem+json"
    )


def retry_headers(problem: Problem) -> dict[str, str]:
    """Return the Retry-After header of a retryable problem."""
    return {"Retry-After": str(problem.retry_after_s)} if problem.retry_after_s else {}


def omit_model(result: ImageResult, model: ModelRef | None) -> ImageResult:
    """Omit ``model`` from an image's result when it equals the response's."""
    return result.model_copy(update={"model": None}) if result.model == model else result


def response_model(results: Sequence[ImageResult]) -> ModelRef | None:
    """Return the weights that classified the first classified image; the response names them."""
    return next((result.model for result in results if result.model), None)


def summarize(results: Sequence[ImageResult]) -> Summary:
    """Count the classified and the failed images."""
    ok = sum(result.status == "ok" for result in results)
    return Summary(ok=ok, failed=len(results) - ok)


def request_problem(results: Sequence[ImageResult]) -> Problem | None:
    """Return the problem that fails the whole request: that of a single image, or a failure of the service for all."""
    problems = [result.error for result in results if result.error]
    if len(problems) < len(results):
        return None
    single = len(results) == 1
    return problems[0] if single or all(problem.status == OverloadedError.status for problem in problems) else None


def first_problem(results: Sequence[ImageResult]) -> Problem | None:
    """Return the problem of the first failed image, for responses that have no place for one per image."""
    for result in results:
        if result.error:
            return result.error.model_copy(update={"detail": f"image {result.index}: {result.error.detail}"})
    return None


def server_timing(results: Sequence[ImageResult], start: float) -> str:
    """Build Server-Timing: the mean of each phase and the total since ``start`` (``time.perf_counter``), in ms."""
    timed = [result.timings_ms for result in results if result.timings_ms]
    names = dict.fromkeys(phase for phases in timed for phase in phases)  # images by URL have one more than the others
    phases = {name: fmean(phases[name] for phases in timed if name in phases) for name in names}
    phases["total"] = (time.perf_counter() - start) * 1000
    return ", ".join(f"{phase};dur={ms:.1f}" for phase, ms in phases.items())


def json_response(results: Sequence[ImageResult], state: State, leave_out: Collection[str] = ()) -> Response:
    """Make the JSON response of a request with the results of its images, without some of their members."""
    body = ClassifyResponse(
        id=state.id,
        model=state.model,
        results=list(results),
        summary=summarize(results),
        warnings=state.warnings or None,
    )
    text = body.model_dump_json(exclude_none=True, exclude={"results": {"__all__": {*leave_out}}})
    return Response(text, headers={"Server-Timing": server_timing(results, state.start)}, media_type="application/json")


def check_one_model(results: Sequence[ImageResult]) -> None:
    """Raise NotReadyError (503) if embeddings of a request are of different weights, so that nobody compares them.

    ``finish_results`` made the results: those of other weights than the response's still name them.
    """
    if any(result.model for result in results):
        raise NotReadyError(
            "the weights were replaced while these images were embedded, and embeddings of different weights cannot be "
            "compared; retry"
        )


async def stream_results(
    tasks: Sequence[asyncio.Task[ImageResult]], state: State, leave_out: Collection[str] = ()
) -> AsyncIterator[str]:
    """Yield each result as a JSON line when ready, then the summary; cancel the rest when the client disconnects."""
    model: ModelRef | None = state.model
    results = []
    try:
        for next_done in asyncio.as_completed(tasks):
            result = await next_done
            results.append(result)
            yield omit_model(result, model).model_dump_json(exclude_none=True, exclude={*leave_out}) + "\n"
        closing = ClassifyResponse(
            id=state.id, model=model, results=[], summary=summarize(results), warnings=state.warnings or None
        )
        yield closing.model_dump_json(exclude={"results"}, exclude_none=True) + "\n"
    finally:
        for task in tasks:
            task.cancel()


def to_explanation(activation_map: ActivationMap) -> Explanation:
    """Convert a class activation map to its JSON."""
    rows, columns = activation_map.values.shape
    return Explanation(
        class_id=activation_map.class_id,
        label=activation_map.label,
        grid=(rows, columns),
        values=activation_map.values.tolist(),
        bias=activation_map.bias,
        logit=activation_map.logit,
    )
