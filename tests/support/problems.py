"""Check an error body of the API."""

from __future__ import annotations

import httpx2


def is_problem(response: httpx2.Response, status: int, code: str) -> bool:
    """Check that a response has every member of an error body; return whether it has this status and code."""
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["detail"]
    assert body["type"] == f"/problems/{code.replace('_', '-')}"
    return (response.status_code, body["status"], body["code"]) == (status, status, code)
