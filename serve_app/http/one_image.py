"""Classify the image of a request that may have only one, as the protocols of other servers do."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import Field

from serve_app.errors import MalformedRequestError
from serve_app.http.fan_out import FanOut, gather_results
from serve_app.http.model_names import SERVED, NamedModel, NamedModels
from serve_app.http.schemas import ImageResult
from serve_app.http.service import Service
from serve_app.http.uploads import BodySchema, Parameters, RequestModel, read_uploads

TOP_K = 5  # classes by default in TorchServe's image_classifier and in Hugging Face's image-classification pipeline


class TopParameters(RequestModel):
    """Parameters of a response that has only labels and scores."""

    top_k: int = Field(TOP_K, ge=1, le=1000, description=Parameters.model_fields["top_k"].description)


Top = TypeVar("Top", bound=TopParameters)


async def classify_one(
    request: Request, service: Service, fan_out: FanOut, schema: BodySchema[Top], models: NamedModels
) -> ImageResult:
    """Classify the image of a request, as /v1/classify does, with the model or head that its path names.

    Args:
        request: Its body is read here.
        service: The ingress replica.
        fan_out: Sends the image to the router.
        schema: What the body may contain.
        models: Chooses the variant.

    Raises:
        MalformedRequestError: The body has several images (400).
        ServiceError: See read_uploads, NamedModels.choose and FanOut.start.
    """
    named: NamedModel = getattr(request.state, "named", SERVED)
    choice = models.choose(request, named)
    uploads, parameters = await read_uploads(request, service.config.limits, schema)
    if len(uploads) > 1:
        raise MalformedRequestError(f"{len(uploads)} images: send one image here, or several to /v1/classify")
    tasks = fan_out.start(uploads, Parameters(top_k=parameters.top_k), choice, request.state, named.use)
    (result,) = await gather_results(tasks)
    request.state.model = result.model or request.state.model
    return named.apply(result)
