"""TorchServe's inference calls, and the calls of its management API that read.

Specification: TorchServe, "Inference API" and "Management API". Variants of the model are its versions. Models change
only by a deployment, so no call here changes one.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from serve_app.errors import NotReadyError, OverloadedError
from serve_app.http.error_forms import error_response
from serve_app.http.fan_out import FanOut
from serve_app.http.model_names import NamedModels, check_model_name, find_version
from serve_app.http.one_image import TopParameters, classify_one
from serve_app.http.openapi import IMAGE_BODY, errors_as, form_fields, query_parameters
from serve_app.http.responses import server_timing
from serve_app.http.schemas import (
    TorchServeError,
    TorchServeHealth,
    TorchServeModel,
    TorchServeModels,
    TorchServeVersion,
    TorchServeWorker,
)
from serve_app.http.service import Service
from serve_app.http.uploads import FILE_FIELDS, BodySchema
from serve_app.model_card import ModelCard
from serve_app.routing.traffic_split import MAIN

PREDICTIONS = "/predictions/{name}"
ALL_VERSIONS = "all"  # takes the place of a version in /models/{name}/{version}
STAGES = ("Classifier", "Ingress")  # the deployments whose replicas may hold the model
PREDICTIONS_BODY = BodySchema(TopParameters, file_fields=("data", "body", *FILE_FIELDS))
FORM_SCHEMA = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": IMAGE_BODY["schema"], **form_fields(TopParameters.model_json_schema())},
}
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "image/*": IMAGE_BODY,
        "application/octet-stream": IMAGE_BODY,
        "multipart/form-data": {"schema": FORM_SCHEMA},
    },
}
ERRORS = errors_as(TorchServeError)
LOOKUP_ERRORS: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 404, 503)}


def create_router(service: Service, fan_out: FanOut, models: NamedModels) -> APIRouter:
    """Build the routes."""
    variants = service.router

    async def check_name(name: str) -> None:
        check_model_name(service, name, variants.first_card().name)

    router = APIRouter(tags=["TorchServe"])

    @router.get(
        "/ping",
        operation_id="torchserve_ping",
        response_model=TorchServeHealth,
        responses={503: {"model": TorchServeHealth, "description": "No model answers"}},
        summary="Health: whether a model answers",
    )
    async def ping() -> Response:
        try:
            await variants.check_ready()
        except (NotReadyError, OverloadedError) as error:
            return JSONResponse({"status": "Unhealthy"}, error.status)
        return JSONResponse({"status": "Healthy"})

    @router.get("/models", operation_id="torchserve_list_models", responses=LOOKUP_ERRORS, summary="The served model")
    async def list_models() -> TorchServeModels:
        return TorchServeModels(models=[TorchServeModel(**_names(variants.first_card()))])

    @router.get(
        "/models/{name}",
        operation_id="torchserve_describe_model",
        dependencies=[Depends(check_name)],
        responses=LOOKUP_ERRORS,
        summary="The version that gets most requests, and its workers",
    )
    async def describe_model() -> list[TorchServeVersion]:
        return (await described())[:1]

    @router.get(
        "/models/{name}/{version}",
        operation_id="torchserve_describe_version",
        dependencies=[Depends(check_name)],
        responses=LOOKUP_ERRORS,
        summary="A version, or `all` versions, and their workers",
    )
    async def describe_version(version: str) -> list[TorchServeVersion]:
        if version == ALL_VERSIONS:
            return await described()
        find_version(variants, version)
        return [each for each in await described() if each.model_version == version]

    async def described() -> list[TorchServeVersion]:
        """Return all versions, that of most requests first."""
        deployments = (await service.describe())["deployments"]
        versions = []
        for variant, card in variants.cards().items():
            names = (stage if variant == MAIN else f"{variant}.{stage}" for stage in STAGES)
            holders = [deployments[name]["replicas"] for name in names if name in deployments]
            running = holders[0].get("RUNNING", 0) if holders else 0
            workers = [TorchServeWorker(id=str(number)) for number in range(running)]
            versions.append(TorchServeVersion(**_names(card), model_version=card.version, workers=workers))
        return versions

    async def predict(request: Request) -> Response:
        """Send an image as the body, or as the file `data` of a form; the result maps labels to probabilities.

        Unknown parameters are ignored and named in the header `X-Warnings`.
        """
        result = await classify_one(request, service, fan_out, PREDICTIONS_BODY, models)
        if result.error:
            return error_response(request, result.error)
        scores: dict[str, float] = {}
        for each in result.predictions or ():
            scores.setdefault(each.label, each.score)  # of classes that share a label, the best one counts
        return JSONResponse(scores, headers={"Server-Timing": server_timing([result], request.state.start)})

    for path, find in ((PREDICTIONS, models.find), (f"{PREDICTIONS}/{{version}}", models.find_version)):
        for method in ("POST", "PUT"):  # `curl -T` sends PUT
            router.add_api_route(
                path,
                predict,
                methods=[method],
                operation_id=f"torchserve_predict{'_version' * (path != PREDICTIONS)}_{method.lower()}",
                dependencies=[Depends(find)],
                response_model=dict[str, float],
                openapi_extra={"requestBody": BODY, **query_parameters(TopParameters)},
                responses=ERRORS,
                summary="Classify one image, as TorchServe's image_classifier does",
            )
    return router


def _names(card: ModelCard) -> dict[str, str]:
    return {"model_name": card.name, "model_url": f"sha256:{card.sha256}"}
