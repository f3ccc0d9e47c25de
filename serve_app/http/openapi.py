"""The OpenAPI document: request bodies and problems that several routes share, names and examples of all operations.

Client generators read it, so every operation has a short name of its own, and every error that it lists is a Problem.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

from serve_app.http.openapi_examples import PARAMETERS, REQUESTS, RESPONSES
from serve_app.http.uploads import BodySchema, body_schema

IMAGE_BODY = {"schema": {"type": "string", "format": "binary"}}


def form_fields(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of a JSON schema as form fields, which are text and never null."""
    return {
        name: {"description": field["description"], **field.get("anyOf", [field])[0]}
        for name, field in schema["properties"].items()
    }


def query_parameters(model: type[BaseModel]) -> dict[str, Any]:
    """Return what documents the query parameters of a route that reads them itself, for its ``openapi_extra``.

    FastAPI would parse them once more for each request, which takes longer than all of our own reading.
    """
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": field, "description": field["description"]}
            for name, field in body_schema(model)["properties"].items()
        ]
    }


def images_body(schema: BodySchema[Any]) -> dict[str, Any]:
    """Return the request body of a route that takes images."""
    form = {
        "type": "object",
        "required": [schema.file_fields[0]],
        "properties": {
            schema.file_fields[0]: {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}},
            **form_fields(schema.parameters.model_json_schema()),
        },
    }
    return {
        "required": True,
        "content": {
            "image/*": IMAGE_BODY,
            "application/octet-stream": IMAGE_BODY,
            "multipart/form-data": {"schema": form},
            "application/json": {"schema": body_schema(schema.json)},
        },
    }


PROBLEM = {"$ref": "#/components/schemas/Problem"}
HTTP_VALIDATION_ERROR = "#/components/schemas/HTTPValidationError"
STATUS_TEXTS = {
    400: "Malformed request",
    401: "The API key is missing or unknown",
    403: "Forbidden source, or a page of another site sent the request",
    404: "Not found",
    408: "The body did not arrive in time",
    409: "Conflict",
    412: "If-Match or If-None-Match does not hold",
    413: "Too many bytes, images or pixels",
    414: "The query string is too long",
    415: "Unsupported image format, content type or content coding",
    421: "The Host header names no host of this service",
    422: "Invalid parameter or corrupt image",
    429: "The API key sends too many images; see Retry-After",
    502: "The replica was lost, and the request may have been carried out",
    503: "Overloaded or not ready; see Retry-After",
    504: "Deadline exceeded; see Retry-After",
}


def errors_as(form: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a route of another server's protocol, in the form that its clients read."""
    return {
        status: {"description": text, "model": form}
        for status, text in STATUS_TEXTS.items()
        if status not in (403, 412)
    }


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/problem+json": {"schema": PROBLEM}}}
    for status, text in STATUS_TEXTS.items()
}
# Keys are optional, because the service decides whether it needs one.
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The API key, where the service needs one."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
SECURITY: list[dict[str, list[str]]] = [{}, *({name: list[str]()} for name in SECURITY_SCHEMES)]


def operation_id(route: APIRoute) -> str:
    """Name a route's operation after its function; generated clients call their functions so."""
    prefix = "v2_" if route.path_format.startswith("/v2") else ""
    return f"{prefix}{route.name}{'_version' if '{version}' in route.path_format else ''}"


def complete_document(app: FastAPI) -> None:
    """Make the application's OpenAPI document complete: add what FastAPI does not know of our routes."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:  # FastAPI keeps what it has generated
            _complete(generate())
        return generate()

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documentation extends the document so


def _complete(document: dict[str, Any]) -> None:
    """Add examples, and API keys; remove FastAPI's own error body, which no route sends."""
    document["components"]["securitySchemes"] = SECURITY_SCHEMES
    document["security"] = SECURITY
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for operation in (each for path in document["paths"].values() for each in path.values()):
        name, responses = operation["operationId"], operation["responses"]
        if HTTP_VALIDATION_ERROR in str(responses.get("422")):
            del responses["422"]
        for parameter in operation.get("parameters", ()):
            if parameter["name"] in PARAMETERS:
                parameter.setdefault("example", PARAMETERS[parameter["name"]])
        for (body, media_type), example in REQUESTS.items():
            if body == name:
                operation["requestBody"]["content"][media_type].setdefault("example", example)
        for (response, media_type), example in RESPONSES.items():
            if response == name:
                success = next(status for status in responses if status.startswith("2"))
                responses[success]["content"][media_type]["example"] = example
