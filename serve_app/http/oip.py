"""The Open Inference Protocol v2, which clients of KServe and Triton speak: routes under /v2.

Specification: KServe, "Open Inference Protocol", HTTP/REST; Triton's extensions "binary tensor data", "classification"
and "model configuration". In JSON an image is its file in base64, because JSON cannot contain bytes; as binary data it
is the file itself. Variants of the model are its versions.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from serve_app.errors import NotReadyError
from serve_app.http.error_forms import error_response
from serve_app.http.fan_out import FanOut, finish_results
from serve_app.http.json_body import off_loop
from serve_app.http.limited_request import LimitedRequest
from serve_app.http.model_names import NamedModel, NamedModels
from serve_app.http.oip_tensors import (
    EMBEDDING,
    INPUT,
    JSON_LENGTH_HEADER,
    OUTPUTS,
    InferRequest,
    read_infer,
    write_infer,
)
from serve_app.http.openapi import IMAGE_BODY, errors_as
from serve_app.http.responses import check_one_model, first_problem, server_timing
from serve_app.http.schemas import ErrorMessage
from serve_app.http.service import Service
from serve_app.http.unknown_parameters import note_unknown_members, note_unknown_query
from serve_app.http.uploads import Parameters, body_schema
from serve_app.messages import EMBEDDING_SIZE
from serve_app.preprocessing.formats import FORMATS

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration")
DESCRIPTIONS = {
    INPUT: f"Each element is one encoded image file ({', '.join(FORMATS)}): base64 or its URL in JSON, bytes as binary "
    "data. The shape [N] means [N, 1].",
    "label": "Class names, best first; the parameter top_k sets their number.",
    "score": "Softmax probabilities, 0-1; with the parameter classification, strings score:class_id:label.",
    "class_id": "Class ids: places in the model's list of labels.",
    EMBEDDING: "What the last layer sees of the image; returned only if the request names this output.",
}
CONFIG_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT64": "TYPE_INT64"}
INFER_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": body_schema(InferRequest)},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
ERRORS = errors_as(ErrorMessage)


def create_router(service: Service, fan_out: FanOut, models: NamedModels) -> APIRouter:
    """Build the routes of the protocol; a head is one more model."""
    variants = service.router

    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])
    model = APIRouter(responses={404: ERRORS[404]})

    @router.get("", summary="Server metadata")
    async def server(request: Request) -> dict[str, Any]:
        return {"name": "serve_app", "version": request.app.version, "extensions": EXTENSIONS}

    @router.get("/health/live", summary="Liveness: the process runs")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready", responses={503: ERRORS[503]}, summary="Readiness: a model answers")
    async def ready() -> dict[str, bool]:
        await variants.check_ready()
        return {"ready": True}

    @router.post("/repository/index", summary="The model and its state")
    async def index() -> list[dict[str, str]]:
        state, reason = "READY", ""
        try:
            await variants.check_ready()
        except NotReadyError as error:
            state, reason = "UNAVAILABLE", str(error)
        return [
            {"name": card.name, "version": card.version, "state": state, "reason": reason}
            for card in variants.cards().values()
        ]

    @model.get("", summary="Model metadata: inputs and outputs")
    async def metadata(request: Request) -> dict[str, Any]:
        named: NamedModel = request.state.named
        outputs = [
            {"name": name, "datatype": datatype, "shape": [-1, _width(name)], "description": DESCRIPTIONS[name]}
            for name, datatype in OUTPUTS.items()
        ]
        return {
            "name": named.name,
            "versions": named.versions,
            "platform": "pytorch",
            "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1, 1], "description": DESCRIPTIONS[INPUT]}],
            "outputs": outputs,
        }

    @model.get("/ready", responses={503: ERRORS[503]}, summary="The model is ready")
    async def model_ready(request: Request) -> dict[str, Any]:
        await variants.check_ready()
        return {"name": request.state.named.name, "ready": True}

    @model.get("/config", summary="Model configuration: the part that perf_analyzer reads")
    async def config(request: Request) -> dict[str, Any]:
        return {
            "name": request.state.named.name,
            "platform": "pytorch",
            "max_batch_size": service.config.limits.max_images,
            "input": [{"name": INPUT, "data_type": CONFIG_TYPES["BYTES"], "dims": [1]}],
            "output": [
                {"name": name, "data_type": CONFIG_TYPES[datatype], "dims": [_width(name)]}
                for name, datatype in OUTPUTS.items()
            ],
            "dynamic_batching": {},
        }

    @model.post(
        "/infer",
        openapi_extra={"requestBody": INFER_BODY},
        responses={**ERRORS, 200: {"content": {"application/octet-stream": IMAGE_BODY}}},  # JSON, then binary data
        summary="Classify images",
    )
    async def infer(request: Request) -> Response:
        """Take one tensor `image` of encoded files, return `label`, `score` and `class_id`, or the `outputs` it names.

        Images are base64 or allowed URLs in `data`, or binary data after the JSON. If an image fails, the request
        fails with that image's status, and the error gives the image's index. Unknown parameters are ignored and named
        in the header `X-Warnings`.
        """
        named: NamedModel = request.state.named
        choice = models.choose(request, named)
        limits, default = service.config.limits, service.config.top_k
        body = await LimitedRequest(request.scope, request.receive, limits.max_body_bytes).body()
        json_length = request.headers.get(JSON_LENGTH_HEADER)
        infer_request, uploads = await off_loop(len(body), read_infer, body, json_length, limits)
        note_unknown_query(request, ())
        note_unknown_members(request, infer_request)
        classes = infer_request.most_classes(default)
        parameters = Parameters(top_k=classes, embed=infer_request.embed)
        tasks = fan_out.start(uploads, parameters, choice, request.state, named.use)
        results = await finish_results(tasks, request.state)
        if problem := first_problem(results):
            return error_response(request, problem)
        if infer_request.embed:
            check_one_model(results)
        named_results, model = [named.apply(result) for result in results], named.ref(request.state.model)
        response = write_infer(infer_request, named_results, infer_request.classes(default), model)
        response.headers["Server-Timing"] = server_timing(results, request.state.start)
        return response

    router.include_router(model, prefix="/models/{name}", dependencies=[Depends(models.find)])
    router.include_router(
        model, prefix="/models/{name}/versions/{version}", dependencies=[Depends(models.find_version)]
    )
    return router


def _width(output: str) -> int:
    """Return the number of values per image of an output; -1 if the request decides."""
    return EMBEDDING_SIZE if output == EMBEDDING else -1
