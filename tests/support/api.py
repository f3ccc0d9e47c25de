"""Post photos to the API, and check its error bodies."""

from __future__ import annotations

import httpx2
from starlette.testclient import TestClient


def post(http: TestClient, *photos: bytes, **options: object) -> httpx2.Response:
    """Send photos as a form to ``/v1/classify``; ``options`` are those of httpx2."""
    files = [("images", (f"{i}.jpg", photo)) for i, photo in enumerate(photos)]
    return http.post("/v1/classify", files=files, **options)  # type: ignore[arg-type] # options are httpx2's own


def is_problem(response: httpx2.Response, status: int, code: str) -> bool:
    """Check that a response has every member of an error body; return whether it has this status and code."""
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["detail"]
    assert body["type"] == f"/problems/{code.replace('_', '-')}"
    return (response.status_code, body["status"], body["code"]) == (status, status, code)
