"""The API over real stages that run in this process; files with other settings define their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from serve_app.config import FeedbackConfig, LimitsConfig, WeightsConfig
from serve_app.http.app import create_app
from serve_app.observability.feedback_store import Feedback
from tests.support.local_service import LocalService

LIMITS = LimitsConfig(max_image_bytes=200_000, max_images=8, max_body_bytes=500_000, deadline_s=20)


@pytest.fixture
def service(weights: WeightsConfig) -> LocalService:
    return LocalService(weights, LIMITS)


@pytest.fixture
def http(service: LocalService) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def shared_http(weights: WeightsConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One API, which takes feedback, for all tests of a file that change no settings."""
    service = LocalService(weights, LIMITS)
    service.feedback = Feedback(FeedbackConfig(folder=str(tmp_path_factory.mktemp("feedback"))))
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client
