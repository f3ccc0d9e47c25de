"""The middleware around Ray Serve's application."""

from __future__ import annotations

import re

from starlette.types import Message, Receive, Scope, Send

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
    """configs/ray.env points Ray Serve to the function that returns both classes."""
    (path,) = re.findall(r"CALLBACK_IMPORT_PATH=(\S+)", (ROOT / "configs" / "ray.env").read_text())
    assert path == f"{proxy_middleware.__module__}:{proxy_middleware.__name__}"
    classes = [middleware.cls for middleware in proxy_middleware()]
    assert classes == [SlowReaderMiddleware, HeaderGuard, BufferedHeadMiddleware]
