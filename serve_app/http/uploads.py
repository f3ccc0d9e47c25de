"""Stage 1/3 · a request's body -> the encoded images in it, within the limits."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope

from serve_app.config import LimitsConfig, describe
from serve_app.errors import (
    InvalidParameterError,
    MalformedRequestError,
    ServiceError,
    TooLargeError,
    UnsupportedImageError,
)

# What programs send when nobody told them better: the second is what `curl --data-binary` says.
RAW_TYPES = ("application/octet-stream", "application/x-www-form-urlencoded")
FILE_FIELDS = ("images", "image", "files", "file")


class Parameters(BaseModel):
    """What a client may ask for; in the query, as form fields or under ``parameters``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: int | None = Field(None, ge=1, le=1000, description="Classes per image; more than there are gives all.")
    min_score: float = Field(0.0, ge=0, le=1, description="Leave out classes that score less.")
    explain: Literal["none", "cam"] = Field("none", description="`cam` adds a class activation map.")
    explain_class: int | None = Field(None, ge=0, description="Class id to explain instead of the best one.")


class JsonInput(BaseModel):
    """One image of a JSON body."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = Field(None, max_length=1000, description="Comes back with the result.")
    b64: str = Field(description="The encoded image, in base64.", json_schema_extra={"format": "byte"})


class JsonBody(BaseModel):
    """The JSON body of /v1/classify."""

    model_config = ConfigDict(extra="forbid")

    inputs: list[JsonInput] = Field(min_length=1)
    parameters: Annotated[dict[str, Any], WithJsonSchema(Parameters.model_json_schema())] = Field(
        default_factory=dict, description="As in the query."
    )


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema without references: OpenAPI resolves them from its own root, where they are not."""
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
    """One image of a request: its bytes, or why it is none.

    Attributes:
        id: File name or id that the client gave.
        encoded: The bytes, or the error that this image already is.
    """

    id: str | None
    encoded: bytes | ServiceError


class LimitedRequest(Request):
    """A request whose body cannot be longer than a limit, whatever its headers claim."""

    def __init__(self, scope: Scope, receive: Receive, max_body_bytes: int) -> None:
        """Wrap a request that nothing has been read from."""
        super().__init__(scope, receive)
        self._max_body_bytes = max_body_bytes

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body.

        Raises:
            TooLargeError: At once when the header says so, else when it is too long.
            MalformedRequestError: The client went away before its end.
        """
        declared = self.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise TooLargeError(_over("the body", int(declared), self._max_body_bytes))
        size = 0
        try:
            async for chunk in super().stream():
                size += len(chunk)
                if size > self._max_body_bytes:
                    raise TooLargeError(_over("the body", size, self._max_body_bytes))
                yield chunk
        except ClientDisconnect:  # an everyday event, not a crash to be logged
            raise MalformedRequestError(f"the body ended after {size} bytes, before it was complete") from None


def parse_parameters(*sources: Mapping[str, Any]) -> Parameters:
    """Merge and validate parameters; later sources win.

    Raises:
        InvalidParameterError: Unknown name or value out of range (422).
    """
    merged = {key: value for source in sources for key, value in source.items()}
    try:
        return Parameters.model_validate(merged)
    except ValidationError as error:
        raise InvalidParameterError(describe(error, Parameters)) from None


async def read_uploads(request: Request, limits: LimitsConfig) -> tuple[list[Upload], Parameters]:
    """Read every image of a request, and its parameters.

    Raises:
        MalformedRequestError: The body does not parse, or holds no image (400).
        TooLargeError: Body or number of images over the limit (413).
        UnsupportedImageError: A content type that can hold no image (415).
        InvalidParameterError: A bad parameter (422).
    """
    limited = LimitedRequest(request.scope, request.receive, limits.max_body_bytes)
    query = dict(request.query_params)
    kind = request.headers.get("content-type", RAW_TYPES[0]).split(";")[0].strip().lower()
    if kind.startswith("image/") or kind in RAW_TYPES:
        parameters = parse_parameters(query)
        uploads = [Upload(None, await limited.body())]
        if uploads[0].encoded == b"":
            raise MalformedRequestError("the body is empty: send the image's bytes")
    elif kind == "multipart/form-data":
        uploads, fields = await _read_form(limited)
        parameters = parse_parameters(query, fields)
    elif kind == "application/json":
        body = await _read_json(limited)
        _check_types(body.parameters)
        parameters = parse_parameters(query, body.parameters)
        uploads = [Upload(each.id, decode_base64(each.b64)) for each in body.inputs]
    else:
        raise UnsupportedImageError(
            f"content type {kind!r}: send image/*, application/octet-stream, multipart/form-data or application/json"
        )
    check_count(len(uploads), limits)
    return [check_size(upload, limits.max_image_bytes) for upload in uploads], parameters


async def _read_form(request: LimitedRequest) -> tuple[list[Upload], dict[str, str]]:
    uploads: list[Upload] = []
    fields: dict[str, str] = {}
    try:
        # The body is bounded already; these bounds only keep a flood of tiny parts out.
        async with request.form(max_files=4096, max_fields=64) as form:
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    fields[name] = value
                elif name in FILE_FIELDS:
                    uploads.append(Upload(value.filename, await value.read()))
                else:
                    raise MalformedRequestError(f"file field {name!r}: use {FILE_FIELDS[0]!r}, repeated for many")
    except HTTPException as error:
        raise MalformedRequestError(f"the multipart body does not parse: {error.detail}") from error
    except KeyError as error:
        raise MalformedRequestError("the multipart content type names no boundary") from error
    if not uploads:
        raise MalformedRequestError(f"the form holds no file: use the field {FILE_FIELDS[0]!r}")
    return uploads, fields


async def _read_json(request: LimitedRequest) -> JsonBody:
    try:
        return JsonBody.model_validate_json(await request.body())
    except ValidationError as error:
        raise MalformedRequestError(f"the JSON body: {describe(error, JsonBody)}") from None


def _check_types(parameters: Mapping[str, Any]) -> None:
    """A query holds only texts, so they are read as numbers; JSON has numbers of its own."""
    for name, value in parameters.items():
        if name != "explain" and isinstance(value, bool | str):
            raise InvalidParameterError(f"{name}: {value!r:.60} is not a number")


def decode_base64(text: str) -> bytes | ServiceError:
    """Decode one image of a JSON body, or say why it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        return MalformedRequestError(f"b64: {error}")


def check_count(images: int, limits: LimitsConfig) -> None:
    """Check how many images a request holds.

    Raises:
        TooLargeError: More than the limit (413).
    """
    if images > limits.max_images:
        raise TooLargeError(f"{images} images in one request; the limit is {limits.max_images}")


def check_size(upload: Upload, limit: int) -> Upload:
    """Give an upload back, as an error if it has more bytes than the limit."""
    if isinstance(upload.encoded, bytes) and len(upload.encoded) > limit:
        return Upload(upload.id, TooLargeError(_over("the image", len(upload.encoded), limit)))
    return upload


def _over(what: str, size: int, limit: int) -> str:
    return f"{what} has {size:,} bytes; the limit is {limit:,} ({limit / 2**20:.1f} MB)"
