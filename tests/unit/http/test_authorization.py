"""Every method and path needs a key unless it is listed, and every body is counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from serve_app.config import AdmissionConfig, KeysConfig, WeightsConfig
from serve_app.http.app import create_app
from serve_app.http.auth import ApiKeys, hash_key
from tests.support.local_service import LocalService

KEY = {"x-api-key": "secret"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
LISTED = (
    *("/", "/healthz", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready"),
    *("/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"),
)
UNKNOWN = ("/none", "/v1", "/v1/none", "/docs/oauth2-redirect", "/static-offline-docs", "/healthz/x")


@pytest.fixture
def service(weights: WeightsConfig) -> LocalService:
    service = LocalService(weights)
    service.keys = ApiKeys(KeysConfig(hashes={"alice": hash_key(KEY["x-api-key"])}))
    return service


@pytest.fixture
def app(service: LocalService) -> FastAPI:
    return create_app(service)


@pytest.fixture
def http(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def paths(app: FastAPI) -> set[str]:
    """Return a path of each route of the app, described or not, with a value for each parameter."""
    templates: list[str] = []
    for route in app.routes:
        if isinstance(route, Mount):
            templates.append(f"{route.path}/swagger-ui.css")
        elif isinstance(route, Route):
            templates.append(route.path)
        else:  # a router that FastAPI includes when it is used
            templates += [each.path for each in route.effective_route_contexts()]  # type: ignore[attr-defined]
    return {fill(template) for template in templates}


def fill(template: str) -> str:
    """Replace the parameters of a path by values that the service knows."""
    return (
        template.replace("{name}", "resnet18")
        .replace("{version}", "random")
        .replace("{job}", "0" * 32)
        .replace("{example}", "1" * 32)
    )


def test_every_route_needs_a_key_unless_it_is_listed(app: FastAPI, http: TestClient) -> None:
    """With each method, with a body, without one, and with a slash at the end; also paths that no route has."""
    known = paths(app)
    assert {*map(fill, app.openapi()["paths"]), "/v1/jobs", *LISTED} <= known
    for path in (*known, *UNKNOWN):
        for method in METHODS:
            for options in ({}, {"content": b"x"}, {"content": iter([b"x"])}):
                status = http.request(method, path, **options).status_code  # type: ignore[arg-type]
                is_listed = path in LISTED and method in ("GET", "HEAD")
                assert (status != 401) if is_listed else (status == 401), (method, path)


async def test_a_route_that_is_added_later_needs_a_key(app: FastAPI, http: TestClient) -> None:
    """A POST, a PUT and a WebSocket, added by someone who has not read the middleware, are closed."""

    @app.post("/v1/later")
    @app.put("/v1/later")
    async def later() -> str:
        raise AssertionError("reached without a key")

    @app.websocket("/v1/stream")
    async def stream(websocket: WebSocket) -> None:
        raise AssertionError("reached without a key")

    assert http.post("/v1/later").status_code == 401
    assert http.put("/v1/later").status_code == 401
    with pytest.raises(WebSocketDisconnect), http.websocket_connect("/v1/stream", headers=KEY):
        pass


@pytest.mark.parametrize("declared", [True, False])
def test_admission_counts_every_body(app: FastAPI, http: TestClient, service: LocalService, declared: bool) -> None:
    """A full service refuses a POST anywhere, and a body of any method, with 503; job uploads have other limits."""
    service.configure(admission=AdmissionConfig.model_construct(max_inflight_images=0))
    for path in {*paths(app), "/none"} - {"/v1/jobs"}:
        assert http.post(path, headers=KEY).status_code == 503, path
        for method in ("PUT", "PATCH", "DELETE", "GET"):
            if method == "GET" and path in LISTED:
                continue
            content: Any = b"x" if declared else iter([b"x"])
            assert http.request(method, path, headers=KEY, content=content).status_code == 503, (method, path)
    assert http.post("/v1/jobs", headers=KEY).json()["code"] == "jobs_off"
    assert http.delete(f"/v1/jobs/{'0' * 32}", headers=KEY).status_code == 404  # a full service lets jobs be cancelled


async def test_bytes_of_any_method_are_counted(app: FastAPI, service: LocalService) -> None:
    """A PUT that declares 5 MB counts as 5 MB while a route reads it."""
    seen: list[int] = []

    @app.put("/v1/later")
    async def later() -> str:
        status = await ask(app, "GET", "/v1/status")
        seen.append(status["admission"]["buffered_bytes"])
        return ""

    await ask(app, "PUT", "/v1/later", (b"content-length", b"5000000"))
    assert seen == [5_000_000]


async def ask(app: FastAPI, method: str, path: str, *headers: tuple[bytes, bytes]) -> Any:
    """Call the app; return its JSON."""
    body = bytearray()

    async def receive() -> Any:
        await asyncio.sleep(0)
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        body.extend(message.get("body", b""))

    raw = [(b"x-api-key", KEY["x-api-key"].encode()), *headers]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    await app(scope | {"headers": raw, "http_version": "1.1", "scheme": "http"}, receive, send)
    return json.loads(body)


HEAD_PATHS = ("/healthz", "/readyz", "/v1/models", "/v1/models/resnet18/labels", "/v1/status", "/v1/usage", "/v2", "/")


@pytest.mark.parametrize("path", HEAD_PATHS)
def test_head_answers_as_get_without_a_body(http: TestClient, path: str) -> None:
    """The same status and headers."""
    get, head = http.get(path, headers=KEY), http.head(path, headers=KEY)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers.keys() == get.headers.keys()
    assert head.headers.get("content-type") == get.headers.get("content-type")


def test_head_of_every_get_route(app: FastAPI, http: TestClient) -> None:
    """No GET route answers 405 to HEAD; a route without GET does, and names its methods."""
    for path, methods in app.openapi()["paths"].items():
        head = http.head(fill(path), headers=KEY)
        has_get = "get" in methods or path == "/"  # the redirect to the documentation is not described
        assert (head.status_code == 405) == (not has_get), path
    assert http.head("/v1/classify", headers=KEY).headers["allow"] == "POST"
    assert http.delete("/healthz", headers=KEY).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/v1/models", "/v2", "/healthz", "/v1/status", "/docs"])
def test_a_slash_at_the_end_changes_nothing(http: TestClient, path: str) -> None:
    """The same answer, not a redirect, which would make a client send its body twice."""
    assert http.get(f"{path}/", headers=KEY).status_code == 200
    assert http.get(f"{path}//", headers=KEY).status_code == 200
    assert http.post(f"{path}/", headers=KEY).status_code == 405
    assert http.post("/v1/classify/", headers=KEY, content=b"x").json()["code"] == "unsupported_image"
    assert http.get("/none/", headers=KEY).status_code == 404
