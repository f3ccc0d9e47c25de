"""POST /v1/feedback: whether a result was right, and the right class."""

from __future__ import annotations

import asyncio
import difflib
import time
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import AfterValidator, Field, ValidationError, model_validator

from serve_app.config import LimitsConfig
from serve_app.errors import (
    FeedbackOffError,
    InvalidParameterError,
    MalformedRequestError,
    ServiceError,
    UnsupportedImageError,
)
from serve_app.http.admission import Permit
from serve_app.http.fan_out import FanOut
from serve_app.http.form_body import FORM, FormSchema, read_form
from serve_app.http.json_body import is_json, looks_like_json
from serve_app.http.limited_request import LimitedRequest
from serve_app.http.openapi import IMAGE_BODY, PROBLEMS, form_fields
from serve_app.http.service import Service
from serve_app.http.unknown_parameters import note_unknown, note_unknown_query
from serve_app.http.uploads import UNTOLD_TYPES, RequestModel, content_type, read_json
from serve_app.messages import ClassifyRequest, RequestContext
from serve_app.observability.feedback_store import Vote
from serve_app.validation import describe


class FeedbackBody(RequestModel):
    """A client's vote on the result of one image."""

    request_id: str = Field(min_length=1, max_length=200, description="`id` of the response.")
    index: Annotated[int | None, AfterValidator(lambda index: index or 0)] = Field(
        0, ge=0, lt=2**31, description="Index of the image in that request."
    )
    correct: bool | None = Field(None, description="Whether the best class is right.")
    label: str | None = Field(None, max_length=1000, description="The right class, one of the model's labels.")

    @model_validator(mode="after")
    def _not_empty(self) -> FeedbackBody:
        if self.correct is None and self.label is None:
            raise ValueError("send `correct` (true or false), or the right class as `label`")
        return self


SCHEMA = FeedbackBody.model_json_schema()
FORM_SCHEMA = {**SCHEMA, "properties": {**form_fields(SCHEMA), "image": IMAGE_BODY["schema"]}}
BODY = {"required": True, "content": {"application/json": {"schema": SCHEMA}, FORM: {"schema": FORM_SCHEMA}}}


def create_router(service: Service, fan_out: FanOut) -> APIRouter:
    """Build the route over a service whose settings may switch feedback on."""
    router = APIRouter(tags=["images"])

    @router.post(
        "/v1/feedback",
        status_code=204,
        openapi_extra={"requestBody": BODY},
        responses={**PROBLEMS, 404: {**PROBLEMS[404], "description": "Feedback is switched off"}},
        summary="Vote on a result",
    )
    async def feedback(request: Request) -> Response:
        """Send `correct: true`, `correct: false`, or the right class as `label`.

        The service does not keep results. Where it keeps images of feedback (`GET /v1/models` says so under
        `feedback`), send the image again together with its `label`, as the file `image` of a form. Unknown fields are
        ignored and named in the header `X-Warnings`.
        """
        store = service.feedback
        if store is None:
            raise FeedbackOffError("feedback is switched off; set `feedback: {folder: …}` in the Ingress's user_config")
        body, encoded = await _read(request, service.config.limits)
        if body.label is not None:
            _check_label(body.label, service)
        if encoded is not None:
            if isinstance(encoded, ServiceError):
                raise encoded
            if not store.keep_images:
                raise InvalidParameterError("image: this service keeps no images; send the feedback without it")
            if body.label is None:
                raise InvalidParameterError("image: an image is kept under its class; send the class as `label`")
        card = next(iter(service.router.cards().values()), None)
        caller, version = request.scope["state"].get("caller"), card and card.version
        vote = Vote(time=time.time(), **body.model_dump(), version=version, caller=caller, image=None)
        image = None if encoded is None else (encoded, await detect_format(encoded, request))
        await asyncio.to_thread(store.keep, vote, image)
        return Response(status_code=204)

    async def detect_format(encoded: bytes, request: Request) -> str:
        """Return the format of an image that the Preprocessor can decode; others would fail a training run later.

        The image is classified like any other: counted by admission control, under the request's deadline.
        """
        permit: Permit = request.state.permit
        context = RequestContext(request.state.id, 0, permit.deadline, request.state.traceparent, caller=permit.caller)
        permit.add_images(1)
        classify = ClassifyRequest(encoded, top_k=1, context=context, max_pixels=service.config.limits.max_pixels)
        outcome = await fan_out.outcome(classify, context, service.router.choose(), permit)
        if isinstance(outcome, ServiceError):
            raise outcome
        assert outcome.image  # the Preprocessor adds it to every result
        return outcome.image.format

    return router


async def _read(request: Request, limits: LimitsConfig) -> tuple[FeedbackBody, bytes | ServiceError | None]:
    """Return the vote and its image; the image's size is its own error. Unknown fields become warnings."""
    limited = LimitedRequest(request.scope, request.receive, limits.max_body_bytes)
    note_unknown_query(request, ())
    kind = content_type(request)
    if kind == FORM:
        schema = FormSchema(("image",), FeedbackBody.model_fields, 1, limits.max_image_bytes)
        form = await read_form(limited.stream(), request.headers["content-type"], schema)
        note_unknown(request, "form field", form.unknown, FeedbackBody.model_fields)
        given = {name: value for name, value in form.fields.items() if value}  # a blank field of a browser is empty
        try:
            return FeedbackBody.model_validate(given), form.files[0].content if form.files else None
        except ValidationError as error:
            raise MalformedRequestError(describe(error, FeedbackBody)) from None
    if is_json(kind) or (kind in UNTOLD_TYPES and looks_like_json(await limited.body())):
        return await read_json(limited, FeedbackBody), None
    raise UnsupportedImageError(
        f"content type {kind!r:.80}: send application/json, or multipart/form-data with the image"
    )


def _check_label(label: str, service: Service) -> None:
    service.router.first_card()
    known = {each for card in service.router.cards().values() for each in card.labels}
    if label not in known:
        similar = difflib.get_close_matches(label, known, 3)
        hint = f"similar labels: {', '.join(similar)}" if similar else "GET /v1/models/{name}/labels lists all labels"
        raise InvalidParameterError(f"label: {label!r:.60} is not a class of the model; {hint}")
