"""Requests that no honest client sends get a 4xx, and the description of the API is true."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
from typing import Any

import pytest
from starlette.types import Message

from serve_app.config import LimitsConfig, WeightsConfig
from serve_app.http.app import create_app
from serve_app.http.oip_tensors import InferRequest
from serve_app.http.proxy_middleware import proxy_middleware
from serve_app.http.uploads import JsonBody, body_schema
from tests.fuzz.kinds import KINDS, broken
from tests.support.local_service import LocalService
from tests.support.photos import make_photo


@pytest.fixture(scope="module")
def app(weights: WeightsConfig) -> Any:
    return create_app(LocalService(weights, LimitsConfig(max_body_bytes=2**20, deadline_s=1.0)))


async def ask(
    app: Any, path: str, kind: str, *messages: Message, more: tuple[tuple[bytes, bytes], ...] = ()
) -> tuple[int, Any]:
    """Call the app with these events from the server; its status and JSON."""
    waiting, sent = list(messages), []

    async def receive() -> Message:
        if not waiting:
            await asyncio.sleep(60)
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", kind.encode()), *more]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    await app(scope | {"headers": headers, "http_version": "1.1", "scheme": "http"}, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], json.loads(body)


def part(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize("name", ["x-request-id", "traceparent", "x-session-id", "serve-multiplexed-model-id"])
async def test_headers_that_ray_cannot_decode_do_not_reach_it(app: Any, name: str) -> None:
    """A header that Ray Serve decodes and that is not UTF-8 is left out; the app answers, here about the empty body."""
    for middleware in proxy_middleware():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    more = ((name.encode(), b"\xff\xfe"), (b"cookie", b"\xff\xfe"))
    status, body = await ask(app, "/v1/classify", "image/jpeg", part(b""), more=more)
    assert (status, body["code"]) == (400, "malformed")
    assert body["request_id"].startswith("req_")


@pytest.mark.parametrize("path", ["/v1/classify", "/predict", "/v2/models/resnet18/infer"])
async def test_a_client_that_leaves_is_no_crash(app: Any, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A body that stops halfway is malformed, and nothing is logged as an error."""
    status, body = await ask(app, path, "image/jpeg", part(b"\xff\xd8\xff", True), {"type": "http.disconnect"})
    assert status == 400
    assert "ended after 3 bytes" in (body.get("detail") or body["error"])
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", True), ("explain_class", False), ("top_k", "3"), ("min_score", "0")]
)
async def test_json_numbers_are_numbers(app: Any, name: str, value: object) -> None:
    """In JSON, neither true nor "3" is a number."""
    inputs = [{"b64": base64.b64encode(make_photo()).decode()}]
    body = json.dumps({"inputs": inputs, "parameters": {name: value}}).encode()
    status, problem = await ask(app, "/v1/classify", "application/json", part(body))
    assert (status, problem["code"]) == (422, "invalid_parameter")
    assert name in problem["detail"]


@pytest.mark.parametrize("model", [JsonBody, InferRequest])
def test_body_schemas_stand_alone(model: type[Any]) -> None:
    """OpenAPI resolves references from its own root, so that a body's schema may have none."""
    assert "$ref" not in json.dumps(body_schema(model))
    assert body_schema(model)["properties"]["inputs"]["items"]["properties"]


def test_hostile_requests_are_reproducible_and_of_every_kind() -> None:
    """The same seed gives the same bytes; a few hundred requests have every kind."""
    photo = make_photo()
    assert broken(random.Random(1), photo) == broken(random.Random(1), photo)
    assert {broken(random.Random(seed), b"x")[0] for seed in range(400)} == {
        k.__name__.replace("_", " ") for k in KINDS
    }
