"""Stage 1/3 · what the stages found -> what goes over the wire: results, problems, timings, streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence

from starlette.responses import Response

from serve_app.errors import OverloadedError, ServiceError
from serve_app.http.schemas import ClassifyResponse, Explanation, ImageResult, Prediction, Problem, Summary, Uncertainty
from serve_app.http.service import Answer, Service
from serve_app.http.uploads import Parameters
from serve_app.messages import ActivationMap
from serve_app.model_card import ModelRef


def to_result(index: int, name: str | None, answer: Answer, parameters: Parameters, service: Service) -> ImageResult:
    """One answer as it goes over the wire."""
    found, labels = answer.classification, answer.labels
    threshold = service.tuning.abstain_below
    return ImageResult(
        index=index,
        id=name,
        status="ok",
        image=answer.image,
        predictions=[
            Prediction(label=labels[class_id], score=score, class_id=class_id)
            for class_id, score in zip(found.class_ids, found.scores, strict=True)
            if score >= parameters.min_score
        ],
        uncertainty=Uncertainty(
            margin=found.margin,
            entropy=found.entropy,
            abstain=found.scores[0] < (answer.abstain_below if threshold is None else threshold),
        ),
        timings_ms={phase: round(ms, 3) for phase, ms in answer.timings_ms.items()},
        batch_size=answer.batch_size,
        explanation=_explanation(found.activation_map, labels) if found.activation_map else None,
        model=answer.model,
    )


def to_problem(error: ServiceError, request_id: str | None) -> Problem:
    """An error as RFC 9457 problem+json."""
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
    """A problem as a whole response; those worth trying again say when."""
    return Response(
        problem.model_dump_json(exclude_none=True),
        problem.status,
        retry_headers(problem),
        "application/problem+json",
    )


def retry_headers(problem: Problem) -> dict[str, str]:
    """The header that says when to try again, if that is worth it."""
    return {"Retry-After": str(problem.retry_after_s)} if problem.retry_after_s else {}


def _explanation(found: ActivationMap, labels: Mapping[int, str]) -> Explanation:
    rows, columns = found.values.shape
    return Explanation(
        class_id=found.class_id,
        label=labels[found.class_id],
        grid=(rows, columns),
        values=found.values.tolist(),
        bias=found.bias,
        logit=found.logit,
    )


def brief(result: ImageResult, model: ModelRef | None) -> ImageResult:
    """A result as part of a response that names these weights: it names its own only where they are others."""
    return result.model_copy(update={"model": None}) if result.model == model else result


def model_of(results: Sequence[ImageResult]) -> ModelRef | None:
    """The weights that a response names: those of the first image that was answered."""
    return next((result.model for result in results if result.model), None)


def summary_of(results: Sequence[ImageResult]) -> Summary:
    """How many images of a request were answered."""
    ok = sum(result.status == "ok" for result in results)
    return Summary(ok=ok, failed=len(results) - ok)


def refusal(results: Sequence[ImageResult]) -> Problem | None:
    """The problem that is the whole answer: that of a single image, or overload of all."""
    problems = [result.error for result in results if result.error]
    alone = len(results) == 1
    if len(problems) == len(results) and (alone or all(p.code == OverloadedError.code for p in problems)):
        return problems[0]
    return None


def server_timing(results: Sequence[ImageResult], start: float) -> str:
    """Mean of each phase over the images, and the whole request's time, in ms."""
    timed = [result.timings_ms for result in results if result.timings_ms]
    phases = {phase: sum(t[phase] for t in timed) / len(timed) for phase in (timed[0] if timed else ())}
    phases["total"] = (time.perf_counter() - start) * 1000
    return ", ".join(f"{phase};dur={ms:.1f}" for phase, ms in phases.items())


async def stream(
    tasks: Sequence[asyncio.Task[ImageResult]], model: ModelRef | None, request_id: str
) -> AsyncIterator[str]:
    """JSON lines: each result as it finishes, then the summary; nobody listening ends the rest."""
    results = []
    try:
        for next_done in asyncio.as_completed(tasks):
            result = await next_done
            results.append(result)
            yield brief(result, model).model_dump_json(exclude_none=True) + "\n"
        closing = ClassifyResponse(id=request_id, model=model, results=[], summary=summary_of(results))
        yield closing.model_dump_json(exclude={"results"}, exclude_none=True) + "\n"
    finally:
        for task in tasks:
            task.cancel()
