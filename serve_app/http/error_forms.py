"""Answer an error in the form that the clients of its path read: problem+json, or that of another server's protocol."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from serve_app.http.responses import problem_response, retry_headers
from serve_app.http.schemas import ErrorMessage, Problem, TorchServeError

OIP = "v2"  # first part of the paths of the Open Inference Protocol
HUGGING_FACE = re.compile("/|/models/[^/]+/?")  # paths that its clients post to
# First parts of TorchServe's paths, and what to do instead of a call that is not here.
TORCHSERVE = {
    "ping": "/docs lists all routes",
    "predictions": "POST or PUT an image to /predictions/{name}",
    "models": "models change only by a deployment; GET /models lists them",
    "explanations": "POST /v1/classify?explain=cam explains a result",
    "invocations": "POST the image to /predictions/{name}",
    "workflows": "there are no workflows",
    "wfpredict": "there are no workflows",
    "api-description": "GET /openapi.json describes the API",
}
# TorchServe's names for errors that it has too; others are named after our code.
TORCHSERVE_TYPES = {
    "malformed": "BadRequestException",
    "unauthorized": "InvalidKeyException",
    "unknown_model": "ModelNotFoundException",
    "not_found": "ResourceNotFoundException",
    "slow_body": "RequestTimeoutException",
    "deadline_exceeded": "RequestTimeoutException",
    "internal": "InternalServerException",
    "overloaded": "ServiceUnavailableException",
    "not_ready": "ServiceUnavailableException",
    "model_failed": "ServiceUnavailableException",
}


def app_path(scope: Scope) -> str:
    """Return the path without the prefix under which the app is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def advice(request: Request) -> str:
    """Return what to do instead of a call whose path or method is not here."""
    return TORCHSERVE.get(_first_part(request), "/docs lists all routes")


def error_response(request: Request, problem: Problem) -> Response:
    """Answer a problem in the form of the protocol that the request uses."""
    first_part = _first_part(request)
    body: ErrorMessage | TorchServeError
    if first_part == OIP or (request.method == "POST" and HUGGING_FACE.fullmatch(app_path(request.scope))):
        body = ErrorMessage(error=problem.detail)
    elif first_part in TORCHSERVE:
        named = problem.code.title().replace("_", "") + "Exception"
        kind = TORCHSERVE_TYPES.get(problem.code, named)
        body = TorchServeError(code=problem.status, type=kind, message=problem.detail)
    else:
        return problem_response(problem)
    return JSONResponse(body.model_dump(), problem.status, retry_headers(problem))


def _first_part(request: Request) -> str:
    return app_path(request.scope).strip("/").partition("/")[0]
