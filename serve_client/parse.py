"""Builds results from the JSON of /v1/classify and of a job's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from serve_client.errors import ProblemError
from serve_client.from_json import from_json
from serve_client.results import ImageResult
from serve_client.session import to_problem


def to_image_result(data: Mapping[str, Any], headers: Mapping[str, str]) -> ImageResult:
    """Return one image's result.

    Args:
        data: The image's result, of a response or of one line of a stream.
        headers: Of the response; they name the request and the weights. A result names its weights only if they differ.
    """
    error, model = data.get("error"), data.get("model") or {}
    result = from_json(ImageResult, {name: value for name, value in data.items() if name != "error"})
    return replace(
        result,
        name=data.get("id"),
        version=None if error else model.get("version", headers.get("x-model-version")),
        request_id=headers.get("x-request-id"),
        request_index=result.index,
        error=ProblemError.of(to_problem(error)) if error else None,
    )
