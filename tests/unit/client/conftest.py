"""The client in this process, against the real API with random weights."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve_app.config import LimitsConfig, WeightsConfig
from serve_app.http.app import create_app
from serve_client import AsyncClient, Client
from tests.support.local_service import LocalService

URL = "http://testserver"


@pytest.fixture
def service(weights: WeightsConfig) -> LocalService:
    """The service, which takes four images per request."""
    return LocalService(weights, LimitsConfig(max_images=4))


@pytest.fixture
def app(service: LocalService) -> FastAPI:
    return create_app(service)


@pytest.fixture
def transport(app: FastAPI) -> Iterator[httpx2.BaseTransport]:
    """Takes requests to the application without a socket."""
    with TestClient(app, raise_server_exceptions=False) as http:
        yield http._transport  # runs the app; httpx2 names none in public


@pytest.fixture
def client(transport: httpx2.BaseTransport) -> Iterator[Client]:
    with Client(URL, transport=transport) as client:
        yield client


@pytest.fixture
async def async_client(app: FastAPI) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(URL, transport=httpx2.ASGITransport(app)) as client:
        yield client


class LosesTheFirstPost(httpx2.BaseTransport):
    """Delivers all requests, and loses the response to the first POST; ``posts`` counts them."""

    def __init__(self, transport: httpx2.BaseTransport) -> None:
        self._transport = transport
        self.posts = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._transport.handle_request(request)
        self.posts += request.method == "POST"
        if request.method == "POST" and self.posts == 1:
            raise httpx2.ReadError("connection reset", request=request)
        return response
