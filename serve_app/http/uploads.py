"""Reads the encoded images and the parameters from a request's body, within the limits."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, WithJsonSchema
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from serve_app.config import FrozenModel, LimitsConfig, Model, describe
from serve_app.errors import (
    InvalidParameterError,
    MalformedRequestError,
    ServiceError,
    SlowBodyError,
    TooLargeError,
    UnsupportedImageError,
)

# Types of clients that set none: the second is the default of `curl --data-binary`.
RAW_TYPES = ("application/octet-stream", "application/x-www-form-urlencoded")
FILE_FIELDS = ("images", "image", "files", "file")


class Parameters(FrozenModel):
    """Parameters of a request: in the query, as form fields or under ``parameters`` in JSON."""

    top_k: int | None = Field(
        None, ge=1, le=1000, description="Number of classes per image; all classes if it is larger than their number."
    )
    min_score: float = Field(0.0, ge=0, le=1, description="Leave out classes with a lower score.")
    explain: Literal["none", "cam"] = Field("none", description="`cam` adds a class activation map (CAM).")
    explain_class: int | None = Field(None, ge=0, description="Id of the class to explain instead of the best class.")


class JsonInput(FrozenModel):
    """One image of a JSON body."""

    id: str | None = Field(None, max_length=1000, description="Returned with the result.")
    b64: str = Field(description="The encoded image, in base64.", json_schema_extra={"format": "byte"})


class JsonBody(FrozenModel):
    """The JSON body of /v1/classify."""

    inputs: list[JsonInput] = Field(min_length=1)
    parameters: Annotated[dict[str, Any], WithJsonSchema(Parameters.model_json_schema())] = Field(
        default_factory=dict, description="The query parameters."
    )


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON schema with its references inlined, because OpenAPI resolves references from its root."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(each) for each in part]
        if not isinstance(part, dict):
            return part
        named = definitions[part["$ref"].rpartition("/")[2]] if "$ref" in part else {}
        return {key: inlined(value) for key, value in {**named, **part}.items() if key != "$ref"}

    return dict(inlined(schema))


@dataclass(frozen=True)
class Upload:
    """One image of a request."""

    id: str | None  # file name or id that the client gave
    encoded: bytes | ServiceError  # the encoded file, or the error that reading it gave


async def receive_within(receive: Receive, seconds: float, refusal: str) -> Message:
    """Return the next message of a body, or raise SlowBodyError (408) with this text."""
    try:
        async with asyncio.timeout(seconds):
            return await receive()
    except TimeoutError:
        raise SlowBodyError(refusal) from None


class LimitedRequest(Request):
    """A request whose body is bounded, whatever its headers declare."""

    def __init__(self, scope: Scope, receive: Receive, max_body_bytes: int) -> None:
        super().__init__(scope, receive)
        self._max_body_bytes = max_body_bytes

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in pieces.

        Raises:
            TooLargeError: The declared or the received length exceeds the limit (413).
            MalformedRequestError: The client disconnected before the end (400).
        """
        declared = self.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise TooLargeError.over("the body", int(declared), self._max_body_bytes)
        size = 0
        try:
            async for chunk in super().stream():
                size += len(chunk)
                if size > self._max_body_bytes:
                    raise TooLargeError.over("the body", size, self._max_body_bytes)
                yield chunk
        except ClientDisconnect:  # an ordinary event that needs no traceback in the log
            raise MalformedRequestError(f"the body ended after {size} bytes, before its end") from None


def parse_parameters(*sources: Mapping[str, Any]) -> Parameters:
    """Merge and validate parameters, or raise InvalidParameterError (422); later sources override earlier ones."""
    try:
        return Parameters.model_validate({key: value for source in sources for key, value in source.items()})
    except ValidationError as error:
        raise InvalidParameterError(describe(error, Parameters)) from None


async def read_uploads(request: Request, limits: LimitsConfig) -> tuple[list[Upload], Parameters]:
    """Read the images and the parameters of a request.

    Raises:
        MalformedRequestError: The body does not parse, or contains no image (400).
        TooLargeError: The body or the number of images exceeds the limit (413).
        UnsupportedImageError: The content type cannot contain an image (415).
        InvalidParameterError: A parameter is invalid (422).
    """
    limited = LimitedRequest(request.scope, request.receive, limits.max_body_bytes)
    query = dict(request.query_params)
    kind = content_type(request, default=RAW_TYPES[0])
    if kind.startswith("image/") or kind in RAW_TYPES:
        parameters = parse_parameters(query)
        uploads = [Upload(None, await limited.body())]
        if uploads[0].encoded == b"":
            raise MalformedRequestError("the body is empty: send the image's bytes")
    elif kind == "multipart/form-data":
        uploads, fields = await _read_form(limited)
        parameters = parse_parameters(query, fields)
    elif kind == "application/json":
        body = await read_json(limited, JsonBody)
        _check_types(body.parameters)
        parameters = parse_parameters(query, body.parameters)
        uploads = [Upload(each.id, decode_base64(each.b64)) for each in body.inputs]
    else:
        raise UnsupportedImageError(
            f"content type {kind!r}: send image/*, application/octet-stream, multipart/form-data or application/json"
        )
    check_count(len(uploads), limits)
    return [check_size(upload, limits.max_image_bytes) for upload in uploads], parameters


def content_type(request: Request, default: str = "") -> str:
    """Return the media type of a request's body without its parameters."""
    return request.headers.get("content-type", default).split(";")[0].strip().lower()


async def read_json(request: LimitedRequest, model: type[Model]) -> Model:
    """Read a JSON body, or raise MalformedRequestError (400)."""
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise MalformedRequestError(f"the JSON body: {describe(error, model)}") from None


@asynccontextmanager
async def parse_form(request: LimitedRequest, max_files: int, max_fields: int) -> AsyncIterator[FormData]:
    """Parse a multipart form, or raise MalformedRequestError (400); its files are closed at the end of the block."""
    try:
        async with request.form(max_files=max_files, max_fields=max_fields) as form:
            yield form
    except HTTPException as error:
        raise MalformedRequestError(f"the multipart body does not parse: {error.detail}") from error
    except KeyError as error:
        raise MalformedRequestError("the multipart content type has no boundary") from error


async def _read_form(request: LimitedRequest) -> tuple[list[Upload], dict[str, str]]:
    uploads: list[Upload] = []
    fields: dict[str, str] = {}
    # The body is bounded already; these limits bound the number of parts.
    async with parse_form(request, max_files=4096, max_fields=64) as form:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                fields[name] = value
            elif name in FILE_FIELDS:
                uploads.append(Upload(value.filename, await value.read()))
            else:
                raise MalformedRequestError(f"file field {name!r}: use {FILE_FIELDS[0]!r}, repeated for many images")
    if not uploads:
        raise MalformedRequestError(f"the form contains no file: use the field {FILE_FIELDS[0]!r}")
    return uploads, fields


def _check_types(parameters: Mapping[str, Any]) -> None:
    """Refuse text and booleans for numbers in JSON; in a query, where all is text, pydantic converts them."""
    for name, value in parameters.items():
        if name != "explain" and isinstance(value, bool | str):
            raise InvalidParameterError(f"{name}: {value!r:.60} is not a number")


def decode_base64(text: str) -> bytes | ServiceError:
    """Decode one image of a JSON body, or return the error."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        return MalformedRequestError(f"b64: {error}")


def check_count(images: int, limits: LimitsConfig) -> None:
    """Raise TooLargeError (413) if the request has too many images."""
    if images > limits.max_images:
        raise TooLargeError(f"{images} images in one request; the limit is {limits.max_images}")


def check_size(upload: Upload, limit: int) -> Upload:
    """Return the upload, or its error if the file is larger than the limit in bytes."""
    if isinstance(upload.encoded, bytes) and len(upload.encoded) > limit:
        return Upload(upload.id, TooLargeError.over("the image", len(upload.encoded), limit))
    return upload
