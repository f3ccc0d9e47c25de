"""POST /v1/classify, and POST /predict in the shape of the original app."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from serve_app.errors import InvalidParameterError
from serve_app.http.fan_out import FanOut, finish_results
from serve_app.http.heads.use import HeadUses
from serve_app.http.negotiation import choose_media_type
from serve_app.http.openapi import PROBLEMS, images_body, query_parameters
from serve_app.http.responses import (
    json_response,
    problem_response,
    request_problem,
    server_timing,
    stream_results,
)
from serve_app.http.schemas import ClassifyResponse, ImageResult, Prediction
from serve_app.http.service import Service
from serve_app.http.uploads import CLASSIFY_BODY, Parameters, read_uploads

JSON = "application/json"
JSONL = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")


def create_router(service: Service, fan_out: FanOut, heads: HeadUses) -> APIRouter:
    """Build the two routes that classify images."""
    router = APIRouter(tags=["images"])

    async def start(request: Request) -> list[asyncio.Task[ImageResult]]:
        choice = service.router.choose(request.headers.get("x-model"), request.headers.get("x-sticky"))
        uploads, parameters = await read_uploads(request, service.config.limits, CLASSIFY_BODY)
        if use := await heads.of(parameters.head, request.state.caller):
            use.check_classes(parameters)
            choice = heads.variant(use, choice)
        if card := service.router.cards().get(choice.variant):
            request.state.model = card.ref
            largest = len(card.labels) - 1
            if use is None and (parameters.explain_class or 0) > largest:
                raise InvalidParameterError(
                    f"explain_class: {parameters.explain_class} is not a class id; the largest is {largest}"
                )
        return fan_out.start(uploads, parameters, choice, request.state, use)

    @router.post(
        "/v1/classify",
        response_model=ClassifyResponse,
        openapi_extra={"requestBody": images_body(CLASSIFY_BODY), **query_parameters(Parameters)},
        responses=PROBLEMS,
        summary="Classify one or many images",
    )
    async def classify(request: Request) -> Response:
        """Send one image as the body, several images as a form (repeat `images`), or base64 in JSON.

        If a single image fails, the response has that image's status and problem+json. With several images the
        status is 200, and each image has its own result. `Accept: application/jsonl` (or `application/x-ndjson`)
        streams each result when it is ready, then a summary; equal weights give JSON. Unknown parameters are ignored
        and named in `warnings`.
        """
        media_type = choose_media_type(request.headers, (JSON, *JSONL))
        if media_type != JSON:
            return StreamingResponse(stream_results(await start(request), request.state), media_type=media_type)
        results = await finish_results(await start(request), request.state)
        if problem := request_problem(results):
            return problem_response(problem)
        return json_response(results, request.state)

    @router.post(
        "/predict",
        openapi_extra={"requestBody": images_body(CLASSIFY_BODY)},
        responses=PROBLEMS,
        summary="Classify images, in the shape of the original app",
    )
    async def predict(request: Request) -> Response:
        """Return a list of `[label, probability]` pairs per image; a failed image gives its problem instead.

        With `head` the pairs are those of the first head. Unknown parameters are ignored and named in the header
        `X-Warnings`.
        """
        results = await finish_results(await start(request), request.state)
        if problem := request_problem(results):
            return problem_response(problem)
        return JSONResponse(
            [
                result.error.model_dump()
                if result.error
                else [[prediction.label, prediction.score] for prediction in _first_predictions(result)]
                for result in results
            ],
            headers={"Server-Timing": server_timing(results, request.state.start)},
        )

    return router


def _first_predictions(result: ImageResult) -> list[Prediction]:
    """Return what the first head of the request says, or the model if the request names no head."""
    answers = [*(result.heads or {}).values()]
    return answers[0].predictions if answers else result.predictions or []
