"""Stage 1/3 · the Open Inference Protocol v2, as KServe and Triton speak it: a second door to the same stages.

Specification: KServe, "Open Inference Protocol", HTTP/REST; Triton's extensions "binary tensor data",
"classification" and "model configuration". In JSON an image is its file in base64, because JSON cannot
hold bytes; as binary data it is the file itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Scope

from serve_app.errors import NotReadyError, UnknownModelError
from serve_app.http.fan_out import FanOut, finish
from serve_app.http.oip_tensors import INPUT, JSON_LENGTH, OUTPUTS, InferRequest, inflate, read_infer, write_infer
from serve_app.http.responses import model_of, problem_response, retry_headers, server_timing
from serve_app.http.schemas import Problem
from serve_app.http.service import Service, first_card
from serve_app.http.uploads import LimitedRequest, Parameters, body_schema
from serve_app.preprocessing.decode import FORMATS

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration")
DESCRIPTIONS = {
    INPUT: f"Each element is one encoded image file ({', '.join(FORMATS)}): base64 of it in JSON, "
    "the bytes themselves as binary data. The shape [N] is taken as [N, 1].",
    "label": "Class names, best first; as many as the request's parameter top_k says.",
    "score": "Softmax probabilities, 0-1; with the parameter classification, strings score:class_id:label.",
    "class_id": "Places of the classes among the model's labels.",
}
CONFIG_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT64": "TYPE_INT64"}
INFER_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": body_schema(InferRequest),
            "example": {
                "inputs": [{"name": INPUT, "shape": [1], "datatype": "BYTES", "data": ["<base64 of a JPEG>"]}],
                "parameters": {"top_k": 3},
            },
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": title, "content": {"application/json": {"example": {"error": "what is wrong"}}}}
    for status, title in {
        400: "Malformed request",
        401: "No valid API key, where keys are needed",
        404: "Unknown model or version",
        408: "The body did not arrive in time",
        413: "Too many bytes, images or pixels",
        415: "Not an accepted image format",
        422: "Bad parameter or corrupt image",
        429: "More than this API key may send; see Retry-After",
        503: "Overloaded or not ready; see Retry-After",
        504: "Deadline exceeded; see Retry-After",
    }.items()
}


def speaks_v2(request: Request) -> bool:
    """Whether a request is for this door, and wants its errors in this protocol's form."""
    path = path_of(request.scope)
    return path == "/v2" or path.startswith("/v2/")


def path_of(scope: Scope) -> str:
    """The path below wherever the app is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def error_response(problem: Problem, where: str = "") -> Response:
    """A problem in this protocol's form; what is worth trying again says when.

    Args:
        problem: What went wrong.
        where: In front of the message, for example which image.
    """
    return JSONResponse({"error": where + problem.detail}, problem.status, retry_headers(problem))


def respond(request: Request, problem: Problem) -> Response:
    """A problem in the form of the door that the request came through."""
    return error_response(problem) if speaks_v2(request) else problem_response(problem)


def create_router(service: Service, fan_out: FanOut) -> APIRouter:
    """Build the routes under ``/v2``: variants of the model are its versions.

    Args:
        service: Whatever classifies.
        fan_out: Classifies the images of a request.
    """

    async def check_name(name: str) -> None:
        if name != (served := first_card(service).name):
            raise UnknownModelError(f"no model {name!r} here; there is {served!r}")

    def of_version(version: str) -> str:
        for variant, card in service.cards().items():
            if card.version == version:
                return variant
        known = ", ".join(repr(card.version) for card in service.cards().values())
        raise UnknownModelError(f"no version {version!r} of {first_card(service).name!r} here; there is {known}")

    async def check_version(version: str) -> None:
        of_version(version)

    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])
    model = APIRouter(responses={404: ERRORS[404]})

    @router.get("", summary="Server metadata")
    async def server(request: Request) -> dict[str, Any]:
        return {"name": "serve_app", "version": request.app.version, "extensions": EXTENSIONS}

    @router.get("/health/live", summary="The process is up")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready", responses={503: ERRORS[503]}, summary="Every stage is up and the model is warm")
    async def ready() -> dict[str, bool]:
        await service.check_ready()
        return {"ready": True}

    @router.post("/repository/index", summary="The one model and its state")
    async def index() -> list[dict[str, str]]:
        state, reason = "READY", ""
        try:
            await service.check_ready()
        except NotReadyError as error:
            state, reason = "UNAVAILABLE", str(error)
        return [
            {"name": card.name, "version": card.version, "state": state, "reason": reason}
            for card in service.cards().values()
        ]

    @model.get("", summary="Model metadata: inputs and outputs")
    async def metadata() -> dict[str, Any]:
        inputs = [{"name": INPUT, "datatype": "BYTES", "shape": [-1, 1]}]
        outputs = [{"name": name, "datatype": datatype, "shape": [-1, -1]} for name, datatype in OUTPUTS.items()]
        return {
            "name": first_card(service).name,
            "versions": list(dict.fromkeys(card.version for card in service.cards().values())),
            "platform": "pytorch",
            "inputs": [tensor | {"description": DESCRIPTIONS[INPUT]} for tensor in inputs],
            "outputs": [tensor | {"description": DESCRIPTIONS[str(tensor["name"])]} for tensor in outputs],
        }

    @model.get("/ready", responses={503: ERRORS[503]}, summary="The model is warm")
    async def model_ready() -> dict[str, Any]:
        await service.check_ready()
        return {"name": first_card(service).name, "ready": True}

    @model.get("/config", summary="Model configuration, as far as perf_analyzer asks")
    async def config() -> dict[str, Any]:
        return {
            "name": first_card(service).name,
            "platform": "pytorch",
            "max_batch_size": service.limits.max_images,
            "input": [{"name": INPUT, "data_type": CONFIG_TYPES["BYTES"], "dims": [1]}],
            "output": [
                {"name": name, "data_type": CONFIG_TYPES[datatype], "dims": [-1]} for name, datatype in OUTPUTS.items()
            ],
            "dynamic_batching": {},
        }

    @model.post("/infer", openapi_extra={"requestBody": INFER_BODY}, responses=ERRORS, summary="Classify images")
    async def infer(request: Request) -> Response:
        """One tensor `image` of encoded files in, `label`, `score` and `class_id` out.

        Images are base64 in `data`, or binary data after the JSON. If one image fails, the
        request fails with that image's status, and the error says which one it was.
        """
        version = request.path_params.get("version")
        asked_for = request.headers.get("x-model") if version is None else of_version(version)
        choice = service.choose(asked_for, request.headers.get("x-sticky"))
        limits = service.limits
        body = await LimitedRequest(request.scope, request.receive, limits.max_body_bytes).body()
        coding = request.headers.get("content-encoding", "").strip().lower()
        if coding:
            body = await asyncio.to_thread(inflate, body, coding, limits.max_body_bytes)
        asked, uploads = read_infer(body, request.headers.get(JSON_LENGTH), limits)
        top_k = asked.parameters.top_k or service.tuning.top_k
        most = max([top_k, *(output.parameters.classification or 0 for output in asked.outputs)])
        results = await finish(fan_out.start(uploads, Parameters(top_k=most), choice, request.state))
        for result in results:
            if result.error:
                return error_response(result.error, f"image {result.index}: ")
        request.state.model = model_of(results)
        response = write_infer(asked, [result.predictions or [] for result in results], top_k, request.state.model)
        response.headers["Server-Timing"] = server_timing(results, request.state.start)
        return response

    router.include_router(model, prefix="/models/{name}", dependencies=[Depends(check_name)])
    both = [Depends(check_name), Depends(check_version)]
    router.include_router(model, prefix="/models/{name}/versions/{version}", dependencies=both)
    return router
