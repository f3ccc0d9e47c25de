"""POST / and POST /models/{name}: image classification of Hugging Face's inference servers, for ``InferenceClient``.

Specification: Hugging Face, task "image-classification". The client sends the image's file as the body or, with
parameters, base64 in JSON.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import Field, field_validator
from starlette.responses import Response

from serve_app.http.base64_images import URL_OF_FILE
from serve_app.http.error_forms import error_response
from serve_app.http.fan_out import FanOut
from serve_app.http.model_names import NamedModels
from serve_app.http.one_image import TopParameters, classify_one
from serve_app.http.openapi import IMAGE_BODY, errors_as, query_parameters
from serve_app.http.responses import server_timing
from serve_app.http.schemas import ErrorMessage, LabelScore
from serve_app.http.service import Service
from serve_app.http.uploads import BodySchema, JsonBody, or_null


class PipelineParameters(TopParameters):
    """Parameters of the task image-classification."""

    function_to_apply: Literal["softmax"] = Field(
        "softmax", description="How scores are made of the model's outputs; the model is trained for `softmax` only."
    )

    @field_validator("function_to_apply", mode="before")
    @classmethod
    def _is_softmax(cls, value: object) -> object:
        if value in ("sigmoid", "none"):
            raise ValueError(f"{value!r} is not available: scores are softmax probabilities; leave it out")
        return value


class PipelineBody(JsonBody):
    """The JSON body: one image, its file in base64 or its URL."""

    @field_validator("inputs", mode="before")
    @classmethod
    def _one_image(cls, value: object) -> object:
        if not isinstance(value, str):
            raise ValueError("send one image's file in base64, or its URL, as a string")
        return [{"url" if URL_OF_FILE.match(value) else "b64": value}]


PIPELINE_BODY = BodySchema(PipelineParameters, PipelineBody)
JSON_SCHEMA = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "inputs": {"type": "string", "description": "The image's file in base64, or its URL on an allowed host."},
        "parameters": or_null(PipelineParameters.model_json_schema()),
    },
}
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "image/*": IMAGE_BODY,
        "application/octet-stream": IMAGE_BODY,
        "application/json": {"schema": JSON_SCHEMA},
    },
}


def create_router(service: Service, fan_out: FanOut, models: NamedModels) -> APIRouter:
    """Build the routes."""
    router = APIRouter(tags=["Hugging Face"])

    async def classify(request: Request) -> Response:
        """Send an image as the body, or base64 in JSON, as `InferenceClient.image_classification` does.

        A path names the model or a head; `/` means the model. Unknown parameters are ignored and named in the header
        `X-Warnings`.
        """
        result = await classify_one(request, service, fan_out, PIPELINE_BODY, models)
        if result.error:
            return error_response(request, result.error)
        return JSONResponse(
            [{"label": each.label, "score": each.score} for each in result.predictions or ()],
            headers={"Server-Timing": server_timing([result], request.state.start)},
        )

    for path, name, checks in (("/", "classify", []), ("/models/{name}", "classify_with", [Depends(models.find)])):
        router.add_api_route(
            path,
            classify,
            methods=["POST"],
            operation_id=f"hugging_face_{name}",
            dependencies=checks,
            response_model=list[LabelScore],
            openapi_extra={"requestBody": BODY, **query_parameters(PipelineParameters)},
            responses=errors_as(ErrorMessage),
            summary="Classify one image, as Hugging Face's inference servers do",
        )
    return router
