"""Classify the image of a request that may have only one, as the protocols of other servers do."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import Field

from serve_app.errors import MalformedRequestError
from serve_app.http.fan_out import FanOut, gather_results
from serve_app.http.schemas import ImageResult
from serve_app.http.service import Service
from serve_app.http.uploads import BodySchema, Parameters, RequestModel, read_uploads

TOP_K = 5  # classes by default in TorchServe's image_classifier and in Hugging Face's image-classification pipeline


class TopParameters(RequestModel):
    """Parameters of a response that has only labels and scores."""

    top_k: int = Field(TOP_K, ge=1, le=1000, description=Parameters.model_fields["top_k"].description)


Top = TypeVar("Top", bound=TopParameters)


async def classify_one(
    request: Request, service: Service, fan_out: FanOut, schema: BodySchema[Top], variant: str | None
) -> ImageResult:
    """Classify the image of a request, as /v1/classify does.

    Args:
        request: Its body is read here.
        service: The ingress replica.
        fan_out: Sends the image to the router.
        schema: What the body may contain.
        variant: The variant that the client names, if it names one.

    Raises:
        MalformedRequestError: The body has several images (400).
        ServiceError: See read_uploads, VariantRouter.choose and FanOut.start.
    """
    choice = service.router.choose(variant, request.headers.get("x-sticky"))
    uploads, parameters = await read_uploads(request, service.config.limits, schema)
    if len(uploads) > 1:
        raise MalformedRequestError(f"{len(uploads)} images: send one image here, or several to /v1/classify")
    tasks = fan_out.start(uploads, Parameters(top_k=parameters.top_k), choice, request.state)
    (result,) = await gather_results(tasks)
    request.state.model = result.model or request.state.model
    return result
