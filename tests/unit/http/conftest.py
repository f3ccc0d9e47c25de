"""The API over real stages that run in this process; files with other settings define their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from serve_app.config import LimitsConfig, WeightsConfig
from serve_app.http.app import create_app
from tests.support.local_service import LocalService


@pytest.fixture
def service(weights: WeightsConfig) -> LocalService:
    return LocalService(
        weights, LimitsConfig(max_image_bytes=200_000, max_images=8, max_body_bytes=500_000, deadline_s=2)
    )


@pytest.fixture
def http(service: LocalService) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client
