"""Reads the encoded images and the parameters from a request's body, within the limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, WithJsonSchema, model_validator
from starlette.requests import Request

from serve_app.config import LimitsConfig
from serve_app.errors import (
    InvalidParameterError,
    MalformedRequestError,
    ServiceError,
    TooLargeError,
    UnsupportedImageError,
)
from serve_app.http.base64_images import decode_base64, read_url
from serve_app.http.form_body import FORM, FormSchema, read_form
from serve_app.http.json_body import is_json, looks_like_json, max_values, off_loop, parse_json
from serve_app.http.limited_request import LimitedRequest
from serve_app.http.unknown_parameters import note_unknown, note_unknown_members, note_unknown_query
from serve_app.image_url import ImageUrl
from serve_app.validation import Model, describe, short_repr

RAW_TYPES = ("application/octet-stream", "binary/octet-stream")  # the second is the default of S3
# Types of clients that set none; the last is the default of curl. The body shows whether it is JSON or an image.
UNTOLD_TYPES = ("", "*/*", "application/x-www-form-urlencoded")
FILE_FIELDS = ("images", "image", "files", "file")
TEXT_PARAMETERS = ("explain", "function_to_apply", "head")  # the others are numbers, true or false


class RequestModel(BaseModel):
    """What a client sends; unknown names are ignored and become warnings (unknown_parameters.py)."""

    model_config = ConfigDict(frozen=True)


class Parameters(RequestModel):
    """Parameters of a request: in the query, as form fields or under ``parameters`` in JSON."""

    top_k: int | None = Field(
        None, ge=1, le=1000, description="Number of classes per image; all classes if it is larger than their number."
    )
    min_score: float = Field(0.0, ge=0, le=1, description="Leave out classes with a lower score.")
    explain: Literal["none", "cam"] = Field("none", description="`cam` adds a class activation map (CAM).")
    explain_class: int | None = Field(None, ge=0, description="Id of the class to explain instead of the best class.")
    head: str | None = Field(None, max_length=2000, description="A taught head, or several with commas between them.")
    similar: int | None = Field(
        None, ge=1, le=50, description="Number of the most similar taught photos of each head to name."
    )
    embed: bool = Field(False, description="Add the image's embedding: 512 numbers that describe it to the last layer.")


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an object that may be null, and so may its members."""
    null = {"type": "null"}
    members = {name: {"anyOf": [member, null]} for name, member in schema["properties"].items()}
    return {"anyOf": [{**schema, "properties": members}, null]}


class JsonInput(RequestModel):
    """One image of a JSON body: the file itself, or its URL."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["b64"]}, {"required": ["url"]}]})
    id: str | None = Field(None, max_length=1000, description="Returned with the result.")
    b64: Annotated[str | None, WithJsonSchema({"type": ["string", "null"], "format": "byte"})] = Field(
        None,
        description="The encoded image, in base64 or as a data URI; line breaks, the URL-safe alphabet and missing "
        "padding are fine.",
    )
    url: Annotated[str | None, WithJsonSchema({"type": ["string", "null"]})] = Field(
        None,
        description="The image's `https://` URL on a host that the service allows, or a data URI; instead of `b64`.",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> JsonInput:
        if (self.b64 is None) == (self.url is None):
            raise ValueError("send the image as `b64` or its `url`" + (", not both" if self.url else ""))
        return self

    def read(self) -> bytes | ImageUrl | ServiceError:
        """Return the file, its URL, or the error that reading it gave."""
        return decode_base64(self.b64) if self.b64 is not None else read_url(self.url or "")


class JsonBody(RequestModel):
    """The JSON body of /v1/classify."""

    inputs: Annotated[list[JsonInput], FailFast()] = Field(min_length=1)
    parameters: Annotated[dict[str, Any] | None, WithJsonSchema(or_null(Parameters.model_json_schema()))] = Field(
        None, description="The query parameters; null means the default."
    )


Given = TypeVar("Given", bound=RequestModel)


@dataclass(frozen=True)
class BodySchema(Generic[Given]):
    """What the body of a route may contain.

    Attributes:
        parameters: Parameters in the query, in form fields and under ``parameters`` in JSON.
        json: The JSON body.
        file_fields: Names of the form fields with images.
    """

    parameters: type[Given]
    json: type[JsonBody] = JsonBody
    file_fields: tuple[str, ...] = FILE_FIELDS


CLASSIFY_BODY = BodySchema(Parameters)


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
    encoded: bytes | ImageUrl | ServiceError  # the encoded file, where to fetch it, or the error that reading it gave


def parse_parameters(kind: type[Given], *sources: Mapping[str, Any]) -> Given:
    """Merge and validate parameters, or raise InvalidParameterError (422).

    Later sources override earlier ones; null in JSON means that a parameter is not given.
    """
    given = {name: value for source in sources for name, value in source.items() if value is not None}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise InvalidParameterError(describe(error, kind)) from None


async def read_uploads(request: Request, limits: LimitsConfig, schema: BodySchema[Given]) -> tuple[list[Upload], Given]:
    """Read the images and the parameters of a request; unknown parameters become warnings in its state.

    Raises:
        MalformedRequestError: The body does not parse, or contains no image (400).
        TooLargeError: The body or the number of images exceeds the limit (413).
        UnsupportedImageError: The content type cannot contain an image (415).
        InvalidParameterError: A parameter is invalid (422).
    """
    limited = LimitedRequest(request.scope, request.receive, limits.max_body_bytes)
    query = dict(request.query_params)
    known, files = schema.parameters.model_fields, schema.file_fields
    note_unknown_query(request, known)
    kind = content_type(request)
    if kind == FORM:
        form_schema = FormSchema(files, known, limits.max_images, limits.max_image_bytes)
        form = await read_form(limited.stream(), request.headers["content-type"], form_schema)
        if not form.files:
            raise MalformedRequestError(f"the form contains no file: use the field {files[0]!r}")
        note_unknown(request, "form field", form.unknown, known)
        # A browser sends empty text for a field that was left blank.
        fields = {name: value for name, value in form.fields.items() if value}
        parameters = parse_parameters(schema.parameters, query, fields)
        return [Upload(file.name, file.content) for file in form.files], parameters
    if not (kind.startswith("image/") or kind in (*RAW_TYPES, *UNTOLD_TYPES) or is_json(kind)):
        raise UnsupportedImageError(
            f"content type {kind!r:.80}: send image/*, application/octet-stream, multipart/form-data or "
            "application/json"
        )
    body = await limited.body()
    if is_json(kind) or (kind in UNTOLD_TYPES and looks_like_json(body)):
        json_body, uploads = await off_loop(len(body), _parse_json_uploads, body, limits, schema)
        given = json_body.parameters or {}
        note_unknown_members(request, json_body)
        note_unknown(request, "JSON parameter", given, known)
        parameters = parse_parameters(schema.parameters, query, given)
    else:
        if not body:
            raise MalformedRequestError("the body is empty: send the image's bytes")
        uploads, parameters = [Upload(None, body)], parse_parameters(schema.parameters, query)
    return [check_size(upload, limits.max_image_bytes) for upload in uploads], parameters


def content_type(request: Request, default: str = "") -> str:
    """Return the media type of a request's body without its parameters."""
    return request.headers.get("content-type", default).split(";")[0].strip().lower()


async def read_json(request: LimitedRequest, model: type[Model]) -> Model:
    """Read a JSON body without images; unknown members become warnings in the request's state.

    Raises:
        MalformedRequestError: The body is not JSON or does not fit the model (400).
        TooLargeError: It has too many values (413).
    """
    body = await request.body()
    parsed = await off_loop(len(body), parse_json, body, model)
    note_unknown_members(request, parsed)
    return parsed


def _parse_json_uploads(body: bytes, limits: LimitsConfig, schema: BodySchema[Given]) -> tuple[JsonBody, list[Upload]]:
    parsed = parse_json(body, schema.json, max_values(limits))
    check_count(len(parsed.inputs), limits)
    _check_types(parsed.parameters or {}, schema.parameters)
    return parsed, [Upload(each.id, each.read()) for each in parsed.inputs]


def _check_types(parameters: Mapping[str, Any], kind: type[RequestModel]) -> None:
    """Refuse JSON values of another type; in a query, where all is text, pydantic converts them."""
    for name, value in parameters.items():
        if name not in kind.model_fields or name in TEXT_PARAMETERS:
            continue
        if kind.model_fields[name].annotation is bool:
            if not isinstance(value, bool | None):
                raise InvalidParameterError(f"{name}: {short_repr(value)} is not true or false")
        elif isinstance(value, bool | str):
            raise InvalidParameterError(f"{name}: {short_repr(value)} is not a number")


def check_count(images: int, limits: LimitsConfig) -> None:
    """Raise TooLargeError (413) if the request has too many images."""
    if images > limits.max_images:
        raise TooLargeError(f"{images} images in one request; the limit is {limits.max_images}")


def check_size(upload: Upload, limit: int) -> Upload:
    """Return the upload, or its error if the file is larger than the limit in bytes."""
    if isinstance(upload.encoded, bytes) and len(upload.encoded) > limit:
        return Upload(upload.id, TooLargeError.over("the image", len(upload.encoded), limit))
    return upload
