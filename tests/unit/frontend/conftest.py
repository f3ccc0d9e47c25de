"""The page and its API client in this process, against the real API with random weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import streamlit as st
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from frontend.api_client import ApiClient
from serve_app.config import LimitsConfig, WeightsConfig
from serve_app.http.app import create_app
from tests.support.local_service import LocalService
from tests.support.paths import ROOT


@pytest.fixture
def service(weights: WeightsConfig) -> LocalService:
    """The service, which takes four images per request."""
    return LocalService(weights, LimitsConfig(max_images=4))


@pytest.fixture
def client(service: LocalService) -> Iterator[ApiClient]:
    """An API client whose requests reach the service without a socket."""
    with TestClient(create_app(service)) as http:
        yield ApiClient("http://testserver", transport=http._transport)  # runs the app; httpx2 names none in public


@pytest.fixture
def page(client: ApiClient, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The whole app on its default page, Classify; ``page.run()`` opens it."""
    monkeypatch.setattr("frontend.api_client.ApiClient", lambda: client)
    st.cache_resource.clear()
    return AppTest.from_file(str(ROOT / "frontend" / "app.py"), default_timeout=30)
