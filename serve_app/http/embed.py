"""POST /v1/embed: images in, their embeddings out, as JSON, JSON lines, raw float32 or .npy."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import Field
from starlette.responses import Response

from serve_app.http.classify import JSON, JSONL
from serve_app.http.fan_out import FanOut, finish_results
from serve_app.http.negotiation import choose_media_type
from serve_app.http.openapi import IMAGE_BODY, PROBLEMS, images_body
from serve_app.http.responses import (
    check_one_model,
    first_problem,
    json_response,
    problem_response,
    request_problem,
    server_timing,
    stream_results,
)
from serve_app.http.schemas import ClassifyResponse
from serve_app.http.service import Service
from serve_app.http.uploads import BodySchema, JsonBody, Parameters, RequestModel, read_uploads

RAW, NPY = "application/octet-stream", "application/x-npy"
CLASSES = ("predictions", "uncertainty")  # members of a result that only /v1/classify returns


class NoParameters(RequestModel):
    """The route takes no parameters, so each one that a client sends becomes a warning."""


class EmbedBody(JsonBody):
    """The JSON body of /v1/embed."""

    parameters: dict[str, Any] | None = Field(None, description="Ignored: the route takes no parameters.")


EMBED_BODY = BodySchema(NoParameters, EmbedBody)


def create_router(service: Service, fan_out: FanOut) -> APIRouter:
    """Build the route."""
    router = APIRouter(tags=["images"])

    @router.post(
        "/v1/embed",
        response_model=ClassifyResponse,
        openapi_extra={"requestBody": images_body(EMBED_BODY)},
        responses={**PROBLEMS, 200: {"content": {RAW: IMAGE_BODY, NPY: IMAGE_BODY}}},
        summary="Return the embeddings of one or many images",
    )
    async def embed(request: Request) -> Response:
        """Send images as to `/v1/classify`; each result has an `embedding` of 512 numbers and no classes.

        `Accept: application/octet-stream` returns all embeddings as little-endian float32, row by row, and
        `application/x-npy` as a file of NumPy; both name the shape in `X-Embedding-Shape` and the weights in
        `X-Model-SHA256`. There a failed image fails the request, with its index in `detail`. Embeddings of different
        weights cannot be compared.
        """
        media_type = choose_media_type(request.headers, (JSON, *JSONL, RAW, NPY))
        choice = service.router.choose(request.headers.get("x-model"), request.headers.get("x-sticky"))
        uploads, _ = await read_uploads(request, service.config.limits, EMBED_BODY)
        if card := service.router.cards().get(choice.variant):
            request.state.model = card.ref
        tasks = fan_out.start(uploads, Parameters(top_k=1, embed=True), choice, request.state)
        if media_type in JSONL:
            return StreamingResponse(stream_results(tasks, request.state, CLASSES), media_type=media_type)
        results = await finish_results(tasks, request.state)
        if problem := request_problem(results):
            return problem_response(problem)
        if media_type == JSON:
            return json_response(results, request.state, CLASSES)
        if failed := first_problem(results):
            return problem_response(failed)
        check_one_model(results)
        matrix = np.array([result.embedding for result in results], "<f4")
        headers = {
            "X-Embedding-Shape": ",".join(map(str, matrix.shape)),
            "X-Model-SHA256": request.state.model.sha256,
            "Server-Timing": server_timing(results, request.state.start),
        }
        return Response(_npy(matrix) if media_type == NPY else matrix.tobytes(), headers=headers, media_type=media_type)

    return router


def _npy(matrix: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, matrix)
    return buffer.getvalue()
