"""The middleware of every request: refusals before the body is read, deadlines, slow bodies."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.config import AdmissionConfig, LimitsConfig, WeightsConfig
from serve_app.http.admission import AdmissionController
from serve_app.http.app import create_app
from tests.support.local_service import LocalService
from tests.support.photos import make_photo

PHOTO = make_photo()
PATHS = ("/v1/classify", "/predict", "/v2/models/resnet18/infer")


@pytest.fixture
def service(weights: WeightsConfig) -> LocalService:
    return LocalService(weights)


@pytest.mark.parametrize("path", PATHS)
def test_a_refusal_has_retry_after(http: TestClient, service: LocalService, path: str) -> None:
    """An overloaded service answers 503 in the form of the protocol, without looking at the body."""
    service.configure(admission=AdmissionConfig.model_construct(max_inflight_images=0))
    response = http.post(path, content=b"not even an image")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.headers["x-request-id"]
    body = response.json()
    assert body["error"] if path.startswith("/v2") else body["code"] == "overloaded"
    assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize("path", PATHS[:2])
def test_a_client_sets_its_deadline(http: TestClient, service: LocalService, path: str) -> None:
    """A result after the client's deadline is a 504, an invalid deadline a 422."""
    service.client.delay_s = 60
    late = http.post(path, content=PHOTO, headers={"X-Request-Timeout-Ms": "50"})
    assert (late.status_code, late.json()["code"], late.json()["detail"]) == (
        504,
        "deadline_exceeded",
        "no result within 0.05 s",
    )
    invalid = http.post(path, content=PHOTO, headers={"X-Request-Timeout-Ms": "soon"})
    assert (invalid.status_code, invalid.json()["code"]) == (422, "invalid_parameter")


@pytest.mark.parametrize(("method", "status"), [("DELETE", 404), ("PUT", 405)])
def test_a_request_about_a_job_has_no_deadline(http: TestClient, method: str, status: int) -> None:
    """Ray's timeout is switched off there with a header that is no deadline of ours, also if the request has a body."""
    headers = {"x-request-timeout-seconds": "0"}
    assert http.request(method, "/v1/jobs/5f4b", content=b"body", headers=headers).status_code == status


async def test_a_body_that_never_ends_is_not_awaited(service: LocalService) -> None:
    """A body that has not arrived at the deadline is a 408."""
    service.configure(limits=LimitsConfig(deadline_s=0.1))
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/classify",
        "headers": [(b"content-length", b"100")],
        "query_string": b"",
    }
    sent: list[dict[str, Any]] = []
    chunks = iter([{"type": "http.request", "body": b"x", "more_body": True}])

    async def receive() -> dict[str, Any]:
        for chunk in chunks:
            return chunk
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    await create_app(service)(scope, receive, send)
    assert sent[0]["status"] == 408


def test_time_in_the_proxy_counts(http: TestClient) -> None:
    """A request that has waited in HAProxy until its deadline is a 504; the client learns its own timeout."""
    start = round((time.time() - 40) * 1000)
    late = http.post("/v1/classify", content=PHOTO, headers={"X-Request-Start": f"t={start}"})
    assert (late.status_code, late.json()["detail"]) == (504, "no result within 30 s")
    for text in (f"t={start + 39_000}", "t=soon", f"t={start + 3_600_000}"):  # waited for 1 s, no time, from the future
        assert http.post("/v1/classify", content=PHOTO, headers={"X-Request-Start": text}).status_code == 200


def test_the_proxy_is_told_how_fast_the_replica_works(
    http: TestClient, service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time per request of busy stages and the longest time of a request; nothing while the first is not known."""
    service.configure(limits=LimitsConfig(deadline_s=20))
    assert "x-busy-us" not in http.post("/v1/classify", content=PHOTO).headers
    monkeypatch.setattr(AdmissionController, "busy_request_s", lambda self: 0.025)
    told = http.post("/v1/classify", content=PHOTO).headers
    assert (told["x-busy-us"], told["x-deadline-ms"]) == ("25000", "20000")
