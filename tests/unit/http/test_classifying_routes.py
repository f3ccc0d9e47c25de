"""Every route that classifies has the same guards, whatever its protocol: none is a way around the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.types import Message

from serve_app.config import AdmissionConfig, KeysConfig, LimitsConfig, WeightsConfig
from serve_app.http.app import create_app
from serve_app.http.auth import ApiKeys, hash_key
from tests.support.local_service import LocalService
from tests.support.photos import make_photo

PHOTO = make_photo()
KEY = {"authorization": "Bearer secret"}
SLOW = 0.0001  # tokens per second: nothing refills during a test
ROUTES = (
    ("POST", "/v1/classify"),
    ("POST", "/v1/embed"),
    ("POST", "/predict"),
    ("POST", "/"),
    ("POST", "//"),
    ("POST", "/predictions/resnet18"),
    ("PUT", "/predictions/resnet18"),
    ("POST", "/predictions/resnet18/random"),
    ("PUT", "/predictions/resnet18/random/"),
)
for_each_route = pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda value: value)


@pytest.fixture
def service(weights: WeightsConfig) -> LocalService:
    """A service with one caller, who has five images and 200 kB."""
    service = LocalService(weights, LimitsConfig(max_image_bytes=100_000, max_body_bytes=150_000, deadline_s=20))
    keys = KeysConfig(
        hashes={"alice": hash_key("secret")}, images_per_s=SLOW, burst=5, bytes_per_s=SLOW, burst_bytes=200_000
    )
    service.keys = ApiKeys(keys)
    return service


@pytest.fixture
def app(service: LocalService) -> FastAPI:
    return create_app(service)


@pytest.fixture
def http(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def usage(http: TestClient) -> tuple[int, int]:
    """Return the images and the bytes that the caller has used."""
    body = http.get("/v1/usage", headers=KEY).json()
    return body["images"]["used"], body["bytes"]["used"]


async def status_before_the_body(app: FastAPI, method: str, path: str, **headers: str) -> int:
    """Return the status with which a request is refused whose body must not be read."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    await app(scope | {"headers": raw, "http_version": "1.1", "scheme": "http"}, receive, send)
    status: int = sent[0]["status"]
    return status


@for_each_route
async def test_a_refused_request_is_refused_before_its_body_is_read(
    app: FastAPI, http: TestClient, service: LocalService, method: str, path: str
) -> None:
    """For its key, its origin, its declared size, its caller's limit, and for overload."""

    async def status(length: int = 1000, **headers: str) -> int:
        return await status_before_the_body(app, method, path, content_length=str(length), **headers)

    key = KEY["authorization"]
    assert await status() == 401
    assert await status(authorization="Bearer wrong") == 401
    assert await status(authorization=key, origin="https://evil.example") == 403
    assert await status(authorization=key, length=150_001) == 413
    before = service.config.admission
    service.configure(admission=AdmissionConfig.model_construct(max_inflight_images=0))
    assert await status(authorization=key) == 503
    service.configure(admission=before)
    for _ in range(4):  # the one with 413 was the first
        http.request(method, path, headers=KEY)
    assert await status(authorization=key) == 429
    service.keys = ApiKeys(KeysConfig())
    assert await status(host="evil.example") == 421


@for_each_route
def test_images_and_bytes_are_charged(http: TestClient, method: str, path: str) -> None:
    """One token for an image, one for a request that has none, whatever is wrong with it; all bytes of the body."""
    for number, content in enumerate((PHOTO, b"no image", b""), 1):
        http.request(method, path, headers=KEY, content=content)
        assert usage(http) == (number, len(PHOTO) + len(b"no image") * (number > 1))
    http.request(method, path, headers=KEY, content=iter([PHOTO[:5000], PHOTO[5000:]]))
    assert usage(http) == (4, 2 * len(PHOTO) + len(b"no image"))


@for_each_route
def test_sizes_are_bounded(http: TestClient, method: str, path: str) -> None:
    """Of the image, and of a body that declares none."""
    assert http.request(method, path, headers=KEY, content=bytes(100_001)).status_code == 413
    assert http.request(method, path, headers=KEY, content=(bytes(10_000) for _ in range(16))).status_code == 413


@for_each_route
def test_results_have_a_deadline_and_are_counted(
    http: TestClient, service: LocalService, method: str, path: str
) -> None:
    """The client's deadline ends a slow request; /v1/status counts both outcomes."""
    assert http.request(method, path, headers=KEY, content=PHOTO).status_code == 200
    service.client.delay_s = 5
    late = http.request(method, path, headers={**KEY, "x-request-timeout-ms": "50"}, content=PHOTO)
    assert late.status_code == 504
    status = http.get("/v1/status", headers=KEY).json()
    assert (status["images"]["ok"], status["images"]["failed"]) == (1, 1)
    assert status["errors"] == {"deadline_exceeded": 1}
    assert status["admission"]["images"] == status["admission"]["buffered_bytes"] == 0


@for_each_route
def test_image_and_body_count_while_they_are_in_memory(
    http: TestClient, service: LocalService, method: str, path: str
) -> None:
    """Admission control knows of both while the other stages work."""
    counted: list[Any] = []
    original = service.client.send

    async def send(*args: Any) -> Any:
        status = await asyncio.to_thread(http.get, "/v1/status", headers=KEY)
        counted.append(status.json()["admission"])
        return await original(*args)

    service.client.send = send  # type: ignore[method-assign]
    assert http.request(method, path, headers=KEY, content=PHOTO).status_code == 200
    assert [(each["images"], each["buffered_bytes"]) for each in counted] == [(1, len(PHOTO))]
