"""OpenAPI texts that several routes share: request bodies and problems."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from serve_app.http.schemas import Problem
from serve_app.http.uploads import FILE_FIELDS, JsonBody, Parameters, body_schema

IMAGE_BODY = {"schema": {"type": "string", "format": "binary"}}


def form_fields(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of a JSON schema as form fields, which are text and never null."""
    return {
        name: {"description": field["description"], **field.get("anyOf", [field])[0]}
        for name, field in schema["properties"].items()
    }


IMAGES_FORM = {
    "type": "object",
    "required": [FILE_FIELDS[0]],
    "properties": {
        FILE_FIELDS[0]: {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}},
        **form_fields(Parameters.model_json_schema()),
    },
}
IMAGES_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "image/*": IMAGE_BODY,
        "application/octet-stream": IMAGE_BODY,
        "multipart/form-data": {"schema": IMAGES_FORM},
        "application/json": {"schema": body_schema(JsonBody)},
    },
}
STATUS_TEXTS = {
    400: "Malformed request",
    401: "The API key is missing or unknown",
    403: "Forbidden source, or a page of another site sent the request",
    404: "Not found",
    408: "The body did not arrive in time",
    409: "Conflict",
    413: "Too many bytes, images or pixels",
    414: "The query string is too long",
    415: "Unsupported image format, content type or content coding",
    421: "The Host header names no host of this service",
    422: "Invalid parameter or corrupt image",
    429: "The API key sends too many images; see Retry-After",
    503: "Overloaded or not ready; see Retry-After",
    504: "Deadline exceeded; see Retry-After",
}


def errors_as(form: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a route of another server's protocol, in the form that its clients read."""
    return {
        status: {"description": text, "model": form}
        for status, text in STATUS_TEXTS.items()
        if status not in (403, 409)
    }


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/problem+json": {"schema": Problem.model_json_schema()}}}
    for status, text in STATUS_TEXTS.items()
}
