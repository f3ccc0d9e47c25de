"""Stage 1/3 · POST /v1/feedback: whether an answer was right, and what it should have been."""

from __future__ import annotations

import asyncio
import difflib
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from serve_app.config import describe
from serve_app.errors import (
    FeedbackOffError,
    InvalidParameterError,
    MalformedRequestError,
    NotReadyError,
    ServiceError,
    UnsupportedImageError,
)
from serve_app.http.service import Service, first_card
from serve_app.http.uploads import LimitedRequest, Upload, check_size
from serve_app.observability.feedback_store import Feedback, Vote
from serve_app.preprocessing.transform import preprocess


class FeedbackBody(BaseModel):
    """What a client says about one image's answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request_id: str = Field(min_length=1, max_length=200, description="`id` of the answer.")
    index: int = Field(0, ge=0, lt=2**31, description="Of the image in that request.")
    correct: bool | None = Field(None, description="Whether the best class was right.")
    label: str | None = Field(None, max_length=1000, description="The right class; one of the model's.")

    @model_validator(mode="after")
    def _says_something(self) -> FeedbackBody:
        if self.correct is None and self.label is None:
            raise ValueError("say `correct` (true or false), or name the right class as `label`")
        return self


SCHEMA = FeedbackBody.model_json_schema()
# A form field holds a text, never null.
FIELDS = {
    name: {"description": schema["description"], **schema.get("anyOf", [schema])[0]}
    for name, schema in SCHEMA["properties"].items()
}
FORM = {**SCHEMA, "properties": {**FIELDS, "image": {"type": "string", "format": "binary"}}}
BODY = {
    "required": True,
    "content": {"application/json": {"schema": SCHEMA}, "multipart/form-data": {"schema": FORM}},
}


def create_router(service: Service, problems: dict[int | str, dict[str, Any]]) -> APIRouter:
    """Build the route over a service that may keep feedback.

    Args:
        service: That may.
        problems: What OpenAPI says of each status of an error.
    """
    router = APIRouter()

    @router.post(
        "/v1/feedback",
        status_code=204,
        openapi_extra={"requestBody": BODY},
        responses={**problems, 404: {**problems[400], "description": "No feedback is kept here"}},
        summary="Say how right an answer was",
    )
    async def feedback(request: Request) -> Response:
        """Thumbs up (`correct: true`), thumbs down, or the right class.

        Nothing of an answer is remembered here, so where images are kept (`GET /v1/models` says so under
        `feedback`) and a class is named, send the image again, as the file `image` of a form.
        """
        kept = service.feedback
        if kept is None:
            raise FeedbackOffError("no feedback is kept here; `feedback: {folder: …}` of the Ingress says where to")
        body, encoded = await _read(request, service.limits.max_body_bytes)
        if body.label is not None:
            _check_label(body.label, service)
        if encoded is not None:
            check = check_size(Upload(None, encoded), service.limits.max_image_bytes).encoded
            if isinstance(check, ServiceError):
                raise check
            if not kept.keep_images:
                raise InvalidParameterError("image: none is kept here; send the feedback without it")
            if body.label is None:
                raise InvalidParameterError("image: it is kept under its class; name that as `label`")
        card = next(iter(service.cards().values()), None)
        vote = Vote(
            time=time.time(),
            request_id=body.request_id,
            index=body.index,
            correct=body.correct,
            label=body.label,
            version=card and card.version,
            caller=request.scope["state"].get("caller"),
            image=None,
        )
        await asyncio.to_thread(_keep, kept, vote, encoded, service)
        return Response(status_code=204)

    return router


async def _read(request: Request, max_body_bytes: int) -> tuple[FeedbackBody, bytes | None]:
    limited = LimitedRequest(request.scope, request.receive, max_body_bytes)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return FeedbackBody.model_validate_json(await limited.body()), None
        if kind == "multipart/form-data":
            async with limited.form(max_files=1, max_fields=8) as form:
                fields = dict(form)
                image = fields.pop("image", None)
                encoded = await image.read() if isinstance(image, UploadFile) else None
                return FeedbackBody.model_validate(fields), encoded
    except ValidationError as error:
        raise MalformedRequestError(describe(error, FeedbackBody)) from None
    except HTTPException as error:
        raise MalformedRequestError(f"the multipart body does not parse: {error.detail}") from error
    except KeyError as error:
        raise MalformedRequestError("the multipart content type names no boundary") from error
    raise UnsupportedImageError(f"content type {kind!r}: send application/json, or multipart/form-data with the image")


def _check_label(label: str, service: Service) -> None:
    first_card(service)
    known = {each for card in service.cards().values() for each in card.labels}
    if label not in known:
        near = difflib.get_close_matches(label, known, 3)
        hint = f"near are {', '.join(near)}" if near else "GET /v1/models/{name}/labels lists them"
        raise InvalidParameterError(f"label: {label!r:.60} is no class of the model; {hint}")


def _keep(kept: Feedback, vote: Vote, encoded: bytes | None, service: Service) -> None:
    image = None
    if encoded is not None:  # what cannot be decoded would only stop a training later
        found = preprocess(encoded, first_card(service).transform, service.limits.max_pixels)
        image = encoded, found.info.format
    try:
        kept.keep(vote, image)
    except OSError as error:
        raise NotReadyError(f"the feedback cannot be written ({error})") from error
