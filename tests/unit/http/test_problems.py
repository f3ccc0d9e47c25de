"""What is wrong with a request or in the service is a problem with its own status, code and sentence."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from serve_app.config import LimitsConfig
from serve_app.errors import (
    DeadlineExceededError,
    InvalidImageError,
    NotReadyError,
    OverloadedError,
    ServiceError,
)
from serve_app.http.app import create_app
from tests.support.api import is_problem, post
from tests.support.local_service import LocalService
from tests.support.photos import make_photo

JPEG = {"content-type": "image/jpeg"}
PHOTO = make_photo()


@pytest.mark.parametrize(
    ("send", "status", "code"),
    [
        ({"content": b"", "headers": JPEG}, 400, "malformed"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "malformed"),
        ({"json": {"inputs": []}}, 400, "malformed"),
        ({"json": {"inputs": [{"id": "a", "b64": "not base64!"}]}}, 400, "malformed"),
        ({"json": {"inputs": [{"id": "a", "base64": ""}]}}, 400, "malformed"),
        ({"files": {"picture": PHOTO}}, 400, "malformed"),
        ({"files": {"images": PHOTO}, "headers": {"content-type": "multipart/form-data"}}, 400, "malformed"),
        ({"data": {"top_k": "3"}}, 415, "unsupported_image"),
        ({"content": PHOTO, "headers": {"content-type": "text/plain"}}, 415, "unsupported_image"),
        ({"content": b"hello", "headers": JPEG}, 415, "unsupported_image"),
        ({"content": PHOTO[:2000], "headers": JPEG}, 422, "invalid_image"),
        ({"content": bytes(200_001), "headers": JPEG}, 413, "too_large"),
        ({"content": bytes(500_001), "headers": JPEG}, 413, "too_large"),
        ({"files": [("images", PHOTO)] * 9}, 413, "too_large"),
        ({"content": PHOTO, "params": {"top_k": 0}}, 422, "invalid_parameter"),
        ({"content": PHOTO, "params": {"top_k": "ten"}}, 422, "invalid_parameter"),
        ({"content": PHOTO, "params": {"min_score": "nan"}}, 422, "invalid_parameter"),
        ({"content": PHOTO, "params": {"explain": "yes"}}, 422, "invalid_parameter"),
        ({"content": PHOTO, "params": {"explain": "cam", "explain_class": 6}}, 422, "invalid_parameter"),
        ({"json": {"inputs": [{"b64": "AA=="}], "parameters": {"top_k": []}}}, 422, "invalid_parameter"),
    ],
    ids=lambda value: None if isinstance(value, int | str) else "-".join(map(str, value))[:20],
)
def test_what_a_client_sends_wrong(http: TestClient, send: dict[str, object], status: int, code: str) -> None:
    """Each mistake has its own status and code, and a sentence."""
    assert is_problem(http.post("/v1/classify", **send), status, code)  # type: ignore[arg-type] # httpx2's own names


def test_problems_name_what_is_wrong(http: TestClient) -> None:
    """The sentence names parameter, value and alternatives."""
    detail = http.post("/v1/classify?explain=yes", content=PHOTO).json()["detail"]
    assert "explain: Input should be 'none' or 'cam' (got 'yes')" in detail
    assert "top_k, min_score" in detail


def test_a_body_that_lies_about_its_length_is_cut_off(http: TestClient) -> None:
    """Chunked bodies have no length to check; they are counted."""

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(10_000)

    assert is_problem(http.post("/v1/classify", content=chunks(), headers=JPEG), 413, "too_large")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OverloadedError("busy"), 503, "overloaded"),
        (NotReadyError("starting"), 503, "not_ready"),
        (DeadlineExceededError("late"), 504, "deadline_exceeded"),
        (ServiceError("broken"), 500, "internal"),
        (RuntimeError("a bug, with its secrets"), 500, "internal"),
    ],
)
def test_what_the_server_does_wrong(
    http: TestClient, service: LocalService, error: Exception, status: int, code: str
) -> None:
    """Server-side failures keep the contract and say nothing internal."""
    service.client.failing = error
    response = http.post("/v1/classify", content=PHOTO, headers=JPEG)
    assert is_problem(response, status, code)
    assert response.json()["retryable"] == (status in (503, 504))
    assert ("retry-after" in response.headers) == response.json()["retryable"]
    assert "secrets" not in response.text


def test_several_images_are_503_only_if_all_were_refused(http: TestClient, service: LocalService) -> None:
    """Overload of all images fails the request; with any other error among them the status is 200."""
    service.client.failing = OverloadedError("busy")
    assert is_problem(post(http, PHOTO, PHOTO), 503, "overloaded")
    mixed = post(http, PHOTO, bytes(200_001))
    assert mixed.status_code == 200
    assert [result["error"]["code"] for result in mixed.json()["results"]] == ["overloaded", "too_large"]
    service.client.failing = InvalidImageError("broken")
    assert post(http, PHOTO, PHOTO).status_code == 200


def test_the_deadline_ends_a_slow_request(service: LocalService) -> None:
    service.configure(limits=LimitsConfig(deadline_s=0.05))
    service.client.delay_s = 5
    with TestClient(create_app(service)) as http:
        assert is_problem(http.post("/v1/classify", content=PHOTO), 504, "deadline_exceeded")


def test_unknown_paths_and_methods_are_problems(http: TestClient) -> None:
    for response, status in ((http.get("/nope"), 404), (http.get("/v1/classify"), 405)):
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        assert "/docs" in response.json()["detail"]


def test_a_method_that_is_not_there_names_all_that_are(http: TestClient) -> None:
    """Also where a path's methods are routes of their own."""
    assert http.options("/v1/jobs").headers["allow"] == "GET, HEAD, POST"
    assert http.put("/v1/jobs/x").headers["allow"] == "DELETE, GET, HEAD"
    assert http.get("/v1/classify").headers["allow"] == "POST"


def test_a_bad_query_is_told_in_terms_of_its_path(http: TestClient) -> None:
    refused = http.get("/v1/jobs/x/results", params={"only": "null"})
    assert is_problem(refused, 422, "invalid_parameter")
    assert refused.json()["detail"].startswith("only: Input should be 'all', ")
    assert refused.json()["detail"].endswith("(got 'null'). Known names: format, only")
    refused = http.post("/v1/classify", content=PHOTO, params={"top_k": "three"})
    assert is_problem(refused, 422, "invalid_parameter")
    assert refused.json()["detail"].startswith("top_k: Input should be a valid integer")
    assert "Known names: top_k, " in refused.json()["detail"]
