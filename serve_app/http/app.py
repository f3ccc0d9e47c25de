"""Stage 1/3 · HTTP in, HTTP out: parameters, answers, errors, health. Knows no Ray."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Annotated, Any, cast

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from serve_app.config import ResponseConfig, describe_errors
from serve_app.errors import InvalidParameterError, NotReadyError, ServiceError, UnknownModelError
from serve_app.http.admission import Admission
from serve_app.http.fan_out import FanOut, finish
from serve_app.http.feedback import create_router as create_feedback_router
from serve_app.http.jobs import create_router as create_jobs_router
from serve_app.http.middleware import AdmissionMiddleware, CorsMiddleware, RequestIdMiddleware
from serve_app.http.oip import create_router, respond
from serve_app.http.responses import (
    brief,
    model_of,
    problem_response,
    refusal,
    server_timing,
    stream,
    summary_of,
    to_problem,
)
from serve_app.http.schemas import ClassifyResponse, ImageResult, Problem
from serve_app.http.service import Service, first_card
from serve_app.http.uploads import FILE_FIELDS, JsonBody, Parameters, body_schema, read_uploads
from serve_app.observability.stats import Stats
from serve_app.preprocessing.decode import FORMATS

JSONL = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
log = logging.getLogger("serve_app")

IMAGE_BODY = {"schema": {"type": "string", "format": "binary"}}
# A form field holds a text, never null.
FORM_PARAMETERS = {
    name: {"description": schema["description"], **schema.get("anyOf", [schema])[0]}
    for name, schema in Parameters.model_json_schema()["properties"].items()
}
FORM_BODY = {
    "schema": {
        "type": "object",
        "required": [FILE_FIELDS[0]],
        "properties": {
            FILE_FIELDS[0]: {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}},
            **FORM_PARAMETERS,
        },
        "additionalProperties": False,
    }
}
BODIES: dict[str, Any] = {
    "required": True,
    "content": {
        "image/*": IMAGE_BODY,
        "application/octet-stream": IMAGE_BODY,
        "multipart/form-data": FORM_BODY,
        "application/json": {"schema": body_schema(JsonBody)},
    },
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": title, "content": {"application/problem+json": {"schema": Problem.model_json_schema()}}}
    for status, title in {
        400: "Malformed body",
        401: "No valid API key, where keys are needed",
        403: "Not to be read from here",
        404: "Not here",
        408: "The body did not arrive in time",
        409: "Does not go with what is there",
        413: "Too many bytes, images or pixels",
        415: "Not an accepted image format",
        422: "Bad parameter or corrupt image",
        429: "More than this API key may send; see Retry-After",
        503: "Overloaded or not ready; see Retry-After",
        504: "Deadline exceeded; see Retry-After",
    }.items()
}


def create_app(service: Service) -> FastAPI:
    """Build the HTTP API over anything that classifies."""
    app = FastAPIOffline(
        title="Image classification",
        version="1",
        summary="A photo in, its ten likeliest classes out.",
        separate_input_output_schemas=False,
    )
    stats = Stats()
    fan_out = FanOut(service, stats)
    _handle_errors(app)

    admission = Admission(lambda: service.admission, lambda: service.room)
    app.add_middleware(AdmissionMiddleware, service=service, admission=admission, stats=stats)
    app.add_middleware(CorsMiddleware, service=service)
    app.add_middleware(RequestIdMiddleware, service=service)
    app.include_router(create_router(service, fan_out))
    app.include_router(create_feedback_router(service, PROBLEMS))
    app.include_router(create_jobs_router(service, PROBLEMS))

    async def start(request: Request) -> list[asyncio.Task[ImageResult]]:
        choice = service.choose(request.headers.get("x-model"), request.headers.get("x-sticky"))
        uploads, parameters = await read_uploads(request, service.limits)
        if card := service.cards().get(choice.variant):
            request.state.model = card.ref
            _check_explained(parameters, len(card.labels))
        return fan_out.start(uploads, parameters, choice, request.state)

    async def finished(request: Request) -> list[ImageResult]:
        results = await finish(await start(request))
        if model := model_of(results):
            request.state.model = model
        return [brief(result, model) for result in results]

    @app.post(
        "/v1/classify",
        response_model=ClassifyResponse,
        openapi_extra={"requestBody": BODIES},
        responses=PROBLEMS,
        summary="Classify one or many images",
    )
    async def classify(request: Request, _documented: Annotated[Parameters, Query()]) -> Response:
        """Send one image as the body, many as a form (repeat `images`), or base64 in JSON.

        One image that fails gives its own status and a problem+json. Of several, each
        has its own result and the status is 200. `Accept: application/jsonl` streams
        each result as it finishes, then a summary.
        """
        if any(kind in request.headers.get("accept", "") for kind in JSONL):
            tasks = await start(request)
            return StreamingResponse(stream(tasks, request.state.model, request.state.id), media_type=JSONL[0])
        results = await finished(request)
        if refused := refusal(results):
            return problem_response(refused)
        model = request.state.model
        body = ClassifyResponse(id=request.state.id, model=model, results=results, summary=summary_of(results))
        headers = {"Server-Timing": server_timing(results, request.state.start)}
        return Response(body.model_dump_json(exclude_none=True), media_type="application/json", headers=headers)

    @app.post("/predict", openapi_extra={"requestBody": BODIES}, responses=PROBLEMS, summary="The original app's shape")
    async def predict(request: Request) -> Response:
        """A list of `[label, probability]` pairs per image; a problem in the place of one that failed."""
        results = await finished(request)
        if refused := refusal(results):
            return problem_response(refused)
        return JSONResponse(
            [
                [[p.label, p.score] for p in result.predictions]
                if result.predictions is not None
                else cast(Problem, result.error).model_dump()
                for result in results
            ],
            headers={"Server-Timing": server_timing(results, request.state.start)},
        )

    @app.get("/healthz", summary="The process is up")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", responses={503: PROBLEMS[503]}, summary="Every stage is up and the model is warm")
    async def readyz() -> dict[str, str]:
        await service.check_ready()
        return {"status": "ready", "version": first_card(service).version}

    @app.get("/v1/models", responses={503: PROBLEMS[503]}, summary="What is served, and within which limits")
    async def models() -> dict[str, Any]:
        first_card(service)
        return {
            "models": [
                {"variant": name, "classes": len(card.labels)}
                | card.model_dump(mode="json", exclude={"labels": True, "int8": {"ranges"}})
                for name, card in service.cards().items()
            ],
            "limits": service.limits.model_dump(),
            "defaults": service.tuning.model_dump(include=set(ResponseConfig.model_fields)),
            "formats": [name.lower() for name in FORMATS],
            "feedback": service.feedback and {"keep_images": service.feedback.keep_images},
        }

    @app.get(
        "/v1/models/{name}/labels",
        responses={404: {"description": "Unknown model"}, 503: PROBLEMS[503]},
        summary="Class names by id; of another variant with X-Model",
    )
    async def labels(request: Request, name: str) -> dict[str, Any]:
        asked = request.headers.get("x-model")
        card = service.cards().get(service.choose(asked).variant) if asked else first_card(service)
        if card is None:
            raise NotReadyError(f"variant {asked!r} has not answered yet; try again")
        if name != card.name:
            raise UnknownModelError(f"no model {name!r} here; there is {card.name!r}")
        return {"name": name, "version": card.version, "labels": card.labels}

    @app.get("/v1/status", summary="What this ingress replica has done since it started")
    async def status() -> dict[str, Any]:
        described = await service.describe()
        cards = list(service.cards().values())
        return {
            "model": cards[0].ref.model_dump() if cards else None,
            **described,
            "admission": admission.snapshot(),
            "prediction_log": service.log and service.log.snapshot(),
            **stats.snapshot(),
        }

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/docs")

    return app


def _check_explained(parameters: Parameters, classes: int) -> None:
    if parameters.explain_class is not None and parameters.explain_class >= classes:
        raise InvalidParameterError(
            f"explain_class: {parameters.explain_class} is not a class id; they end at {classes - 1}"
        )


def _handle_errors(app: FastAPI) -> None:
    """Answer every error as problem+json, or in the form of the Open Inference Protocol under /v2."""

    def request_id(request: Request) -> str | None:
        return getattr(request.state, "id", None)

    def documented_methods(path: str) -> list[str]:
        paths = app.openapi()["paths"].items()
        return sorted(m.upper() for where, methods in paths if compile_path(where)[0].match(path) for m in methods)

    @app.exception_handler(ServiceError)
    async def ours(request: Request, error: ServiceError) -> Response:
        return respond(request, to_problem(error, request_id(request)))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        where, method = request.scope["route"].path, request.method.lower()
        known = [each["name"] for each in app.openapi()["paths"][where][method]["parameters"] if each["in"] == "query"]
        wrong = [{**each, "loc": each["loc"][1:]} for each in error.errors()]  # without "query"
        return await ours(request, InvalidParameterError(describe_errors(wrong, known)))

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        problem = Problem(
            type="about:blank",
            title=error.detail,
            status=error.status_code,
            code=error.detail.lower().replace(" ", "_"),
            detail=f"{request.method} {request.url.path}: {error.detail}; /docs lists what there is",
            retryable=False,
            request_id=request_id(request),
        )
        response = respond(request, problem)
        response.headers.update(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (methods := documented_methods(request.url.path)):
            response.headers["Allow"] = ", ".join(methods)  # Starlette names those of one route only
        return response

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        log.error("request %s", request_id(request), exc_info=error)
        return await ours(request, ServiceError("the server failed; its log says why"))
