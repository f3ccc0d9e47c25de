"""The middleware around Ray Serve's application."""

from __future__ import annotations

import re

import pytest
from starlette.types import Message, Receive, Scope, Send

from serve_app.deadline import read_deadline
from serve_app.errors import InvalidParameterError
from serve_app.http.proxy_middleware import BufferedHeadMiddleware, HeaderGuard, proxy_middleware
from serve_app.http.slow_readers import SlowReaderMiddleware
from tests.support.paths import ROOT

HEAD: Message = {"type": "http.response.start", "status": 200, "headers": []}
BODY: list[Message] = [
    {"type": "http.response.body", "body": b"one", "more_body": True},
    {"type": "http.response.body", "body": b"two"},
]


async def run(messages: list[Message]) -> list[tuple[str, list[Message]]]:
    """Let an app send messages; return what has reached the client after each."""
    sent: list[Message] = []
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
            seen.append((message["type"], list(sent)))

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    await BufferedHeadMiddleware(app)({"type": "http"}, receive, send)
    return seen


async def test_the_head_of_a_response_waits_for_its_body() -> None:
    """A replica that is killed in between has sent nothing, so HAProxy can repeat the request on another one."""
    head, first, second = await run([HEAD, *BODY])
    assert head == ("http.response.start", [])
    assert first[1] == [HEAD, BODY[0]]
    assert second[1] == [HEAD, *BODY]


async def test_other_messages_pass() -> None:
    """Lifespan messages are not delayed."""
    ready: Message = {"type": "lifespan.startup.complete"}
    assert await run([ready]) == [("lifespan.startup.complete", [ready])]


def test_ray_env_names_the_middleware() -> None:
    """configs/ray.env points Ray Serve to the function that returns all classes."""
    (path,) = re.findall(r"CALLBACK_IMPORT_PATH=(\S+)", (ROOT / "configs" / "ray.env").read_text())
    assert path == f"{proxy_middleware.__module__}:{proxy_middleware.__name__}"
    classes = [middleware.cls for middleware in proxy_middleware()]
    assert classes == [HeaderGuard, BufferedHeadMiddleware, SlowReaderMiddleware]


async def seen_by_ray(method: str, path: str, *headers: tuple[str, str]) -> list[tuple[str, str]]:
    """Return the headers that the application inside ``HeaderGuard`` gets."""
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])

    async def nothing() -> Message:
        raise AssertionError

    async def send(message: Message) -> None: ...

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    await HeaderGuard(app)({"type": "http", "method": method, "path": path, "headers": raw}, nothing, send)
    return [(name.decode(), value.decode("latin-1")) for name, value in seen]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-request-disconnect-disabled", "?1"),
        ("x-session-id", "a"),
        ("x_session_id", "a"),
        ("serve_multiplexed_model_id", "m"),
        ("serve-multiplexed-model-id", "m"),
        ("serve_multiplexed-model_id", "m"),
        ("x-serve-router-replica", "r"),
        ("x-request-id", "é"),
        ("x-request-id", "a b"),
        ("x-request-id", "a\n"),
        ("x-request-id", ""),
        ("x-request-id", "a" * 129),
        ("x-request-id", "a" * 2**20),
        ("traceparent", "00-1-2-01"),
        ("traceparent", f"00-{'0' * 32}-{'1' * 16}-01"),
        ("traceparent", f"00-{'1' * 32}-{'1' * 16}-01-more"),
        ("traceparent", f"ff-{'1' * 32}-{'1' * 16}-01"),
        ("tracestate", "a=" + "1" * 2**20),
    ],
)
async def test_control_headers_of_clients_do_not_reach_ray(name: str, value: str) -> None:
    """Ray Serve sees neither headers that steer it nor ids that are not accepted."""
    assert await seen_by_ray("POST", "/v1/classify", (name, value), ("accept", "a/b")) == [("accept", "a/b")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-request-id", "Az0_.-" + "a" * 122),
        ("traceparent", f"00-{'1a' * 16}-{'2b' * 8}-01"),
        ("traceparent", f"01-{'1a' * 16}-{'2b' * 8}-01-new"),
        ("tracestate", "vendor=1,other=2"),
        ("x-sticky", "a"),
    ],
)
async def test_accepted_headers_reach_ray(name: str, value: str) -> None:
    """Valid ids and trace contexts, and headers of our own, pass unchanged."""
    assert await seen_by_ray("POST", "/v1/classify", (name, value)) == [(name, value)]


async def test_two_request_ids_are_none() -> None:
    """Ray Serve and the app would each take another one."""
    assert await seen_by_ray("GET", "/", ("x-request-id", "a"), ("x-request-id", "b")) == []


@pytest.mark.parametrize("value", ["0", "-1", "nan", "2"])
async def test_the_clients_timeout_is_obeyed_by_the_app_only(value: str) -> None:
    """Ray Serve would take 0 as no timeout at all; read_deadline refuses it and says which header is wrong."""
    sent = ("x-request-timeout-seconds", value)
    ((name, forwarded),) = await seen_by_ray("POST", "/v1/classify", sent)
    assert forwarded == value
    if value == "2":
        assert read_deadline({name: forwarded}, 30).left_s() <= 2
        return
    with pytest.raises(InvalidParameterError, match="header x-request-timeout-seconds"):
        read_deadline({name: forwarded}, 30)


@pytest.mark.parametrize(
    ("method", "path", "headers", "read_ahead"),
    [
        ("POST", "/v1/classify", [("content-length", "9")], True),
        ("GET", "/v1/jobs/1/results", [], True),
        ("DELETE", "/v1/jobs/1", [("content-length", "0")], True),
        ("POST", "/v1/jobs", [("content-length", "9")], False),
        ("POST", "/v1/jobs/", [("content-length", "9")], False),
        ("PUT", "/v1/classify", [("content-length", "9")], False),
        ("GET", "/v1/status", [("transfer-encoding", "chunked")], False),
    ],
)
async def test_ray_reads_ahead_only_what_is_counted(
    method: str, path: str, headers: list[tuple[str, str]], read_ahead: bool
) -> None:
    """Ray Serve buffers without a bound, so it must not for job uploads and for bodies that no route reads."""
    seen = await seen_by_ray(method, path, *headers)
    assert (("x-request-disconnect-disabled", "?1") in seen) is not read_ahead
