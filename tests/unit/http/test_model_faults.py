"""What clients get when the model's scores are not finite numbers: an error on every route, and never a null score."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from serve_app.config import WeightsConfig
from serve_app.http.app import create_app
from tests.support import local_service
from tests.support.local_service import LocalService
from tests.support.photos import make_photo

PHOTO = make_photo()
IMAGE = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(PHOTO).decode()]}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "one image": ("/v1/classify", {"content": PHOTO, "headers": {"Content-Type": "image/jpeg"}}),
    "with a map": ("/v1/classify?explain=cam", {"content": PHOTO, "headers": {"Content-Type": "image/jpeg"}}),
    "JSON": ("/v1/classify", {"json": {"inputs": [{"b64": IMAGE["data"][0]}]}}),
    "the original app": ("/predict", {"files": [("files", ("a.jpg", PHOTO, "image/jpeg"))]}),
    "Open Inference Protocol": ("/v2/models/resnet18/infer", {"json": {"inputs": [IMAGE]}}),
}


@pytest.fixture
def http(weights: WeightsConfig) -> Iterator[TestClient]:
    with TestClient(create_app(LocalService(weights))) as client:
        yield client


def break_model(weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    engine, _ = local_service.load(weights)
    sound = engine._runtime
    monkeypatch.setattr(engine, "_runtime", lambda pixels: np.full_like(sound(pixels), value))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("case", REQUESTS)
def test_a_broken_model_is_a_retryable_503(
    http: TestClient, weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch, case: str, value: float
) -> None:
    path, request = REQUESTS[case]
    assert http.post(path, **request).status_code == 200
    break_model(weights, monkeypatch, value)
    answer = http.post(path, **request)
    assert answer.status_code == 503, answer.text
    assert answer.headers["Retry-After"] == "1"
    assert "not finite numbers" in answer.text


def test_a_request_of_which_every_image_fails_so_fails(
    http: TestClient, weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 200 without any result would tell a client's retries nothing."""
    break_model(weights, monkeypatch, np.nan)
    files = [("images", (name, PHOTO, "image/jpeg")) for name in ("a", "b", "c")]
    answer = http.post("/v1/classify", files=files)
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "model_failed", True)
