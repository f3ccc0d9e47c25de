"""What stands before Ray Serve."""

from __future__ import annotations

from starlette.types import Message, Receive, Scope, Send

from serve_app.http.middleware import BufferedHeadMiddleware, outermost

HEAD: Message = {"type": "http.response.start", "status": 200, "headers": []}
BODY: list[Message] = [
    {"type": "http.response.body", "body": b"one", "more_body": True},
    {"type": "http.response.body", "body": b"two"},
]


async def run(answer: list[Message]) -> list[tuple[str, list[Message]]]:
    """What has been sent when the app has said each of these."""
    sent: list[Message] = []
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in answer:
            await send(message)
            seen.append((message["type"], list(sent)))

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    await BufferedHeadMiddleware(app)({"type": "http"}, receive, send)
    return seen


async def test_the_head_of_a_response_waits_for_its_body() -> None:
    """A replica that is killed in between has not begun to answer, so that another one can."""
    head, first, second = await run([HEAD, *BODY])
    assert head == ("http.response.start", [])
    assert first[1] == [HEAD, BODY[0]]
    assert second[1] == [HEAD, *BODY]


async def test_other_messages_pass() -> None:
    ready: Message = {"type": "lifespan.startup.complete"}
    assert await run([ready]) == [("lifespan.startup.complete", [ready])]


def test_ray_is_told() -> None:
    assert BufferedHeadMiddleware in [each.cls for each in outermost()]
