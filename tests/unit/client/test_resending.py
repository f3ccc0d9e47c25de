"""Refused, cut and strange responses, from a server that a test writes byte by byte."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import TypeVar

import httpx2
import pytest

from serve_client import (
    AsyncClient,
    Client,
    ImageResult,
    NoResponseError,
    ProblemError,
    ResponseTimeoutError,
    UnexpectedResponseError,
    UnreadableImageError,
    errors,
)
from serve_client.async_client import http_options
from serve_client.operations import Operations
from serve_client.session import Session
from serve_client.transport import BlockingTransport, iterate, run
from tests.support.tiny_server import serving

T = TypeVar("T")
MODELS = {
    "models": [],
    "formats": [],
    "limits": {
        "max_image_bytes": 100,
        "max_images": 4,
        "max_body_bytes": 10_000,
        "max_pixels": 100,
        "deadline_s": 1,
    },
}
BUSY = {"status": 503, "code": "overloaded", "detail": "busy", "retryable": True}


def response(status: int, body: object, *headers: str, kind: str = "application/json") -> bytes:
    """Return a complete response; text is sent as it is, other values as JSON."""
    content = (body if isinstance(body, str) else json.dumps(body)).encode()
    lines = (f"HTTP/1.1 {status} Reason", f"Content-Type: {kind}", f"Content-Length: {len(content)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + content


def problem(body: dict[str, object], *headers: str) -> bytes:
    return response(int(str(body["status"])), body, *headers, kind="application/problem+json")


def line(index: int, error: dict[str, object] | None = None) -> str:
    """Return one line of a stream."""
    result: dict[str, object] = {"index": index, "id": "name", "status": "error" if error else "ok"}
    return json.dumps(result | ({"error": error} if error else {"predictions": []})) + "\n"


OK = response(200, {"id": "req_1", "results": [{"index": 0, "status": "ok", "predictions": []}]})


class Script:
    """Answers POST requests with given responses, one after the other, and GET with the models.

    Attributes:
        requests: The bytes of each POST request.
        waits: The seconds that the client waited between them.
    """

    def __init__(self, *responses: bytes) -> None:
        self._responses, self.requests, self.waits = list(responses), list[bytes](), list[float]()

    async def __call__(self, request: bytes) -> bytes:
        if request.startswith(b"GET"):
            return response(200, MODELS)
        self.requests.append(request)
        return self._responses.pop(0)

    async def run(self, operation: Callable[[Operations], T], api_key: str | None = None, timeout_s: float = 60) -> T:
        """Run an operation of the blocking client in a thread, against this server; its waits take no time."""
        async with serving(self) as url:
            options = http_options(url.removesuffix("/classify"), api_key, None)

            def in_thread() -> T:
                transport = BlockingTransport(httpx2.Client(**options), self.waits.append)
                try:
                    return operation(Operations(Session(transport, timeout_s, max_retries=3)))
                finally:
                    run(transport.aclose())

            return await asyncio.to_thread(in_thread)


def classify(operations: Operations) -> ImageResult:
    return run(operations.classify(b"photo"))


def classify_four(operations: Operations) -> list[ImageResult]:
    return list(iterate(operations.classify_many([b"photo 0", b"photo 1", b"photo 2", b"photo 3"])))


def vote(operations: Operations) -> None:
    run(operations.feedback("req_1", correct=True))


def photos_in(request: bytes) -> list[str]:
    """Return the photos that a form holds."""
    return [word.decode() for word in re.findall(rb"photo \d", request)]


async def test_it_waits_as_long_as_the_service_asks() -> None:
    """Two refusals, then the result; each wait is at least Retry-After."""
    script = Script(problem(BUSY, "Retry-After: 3"), problem(BUSY, "Retry-After: 5"), OK)
    assert (await script.run(classify)).ok
    assert [3 <= script.waits[0] <= 4, 5 <= script.waits[1] <= 6, len(script.waits)] == [True, True, 2]


async def test_it_gives_up_in_the_end() -> None:
    """After three repetitions, and at once where the wait would be longer than the time left."""
    script = Script(*[problem(BUSY, "Retry-After: 1")] * 4)
    with pytest.raises(errors.OverloadedError, match="busy") as raised:
        await script.run(classify)
    assert (len(script.requests), raised.value.retry_after) == (4, 1)
    script = Script(problem(BUSY, "Retry-After: 30"))
    with pytest.raises(errors.OverloadedError):
        await script.run(classify, timeout_s=20)
    assert script.waits == []


async def test_each_attempt_tells_the_service_the_time_left() -> None:
    script = Script(OK)
    await script.run(classify, timeout_s=20)
    (left_ms,) = re.findall(rb"x-request-timeout-ms: (\d+)", script.requests[0].lower())
    assert 15_000 < int(left_ms) <= 19_000


async def test_a_lost_response_is_asked_for_again() -> None:
    """A connection that ends before the response, and a 502 and a 504 of a proxy, repeat what may run twice."""
    for lost in (b"", response(502, "bad", kind="text/html"), response(504, "late", kind="text/html")):
        script = Script(lost, OK)
        assert (await script.run(classify)).ok
        assert len(script.requests) == 2


async def test_a_vote_counts_once() -> None:
    """A vote is repeated where it was refused, and not where its response was lost."""
    refused = Script(problem(BUSY), response(204, ""))
    await refused.run(vote)
    assert len(refused.requests) == 2
    lost = Script(b"")
    with pytest.raises(NoResponseError):
        await lost.run(vote)
    uncertain = Script(response(502, "bad"))
    with pytest.raises(ProblemError):
        await uncertain.run(vote)
    assert (len(lost.requests), len(uncertain.requests)) == (1, 1)


async def test_only_refused_images_are_sent_again() -> None:
    """Images that the service shed go into a second request; the result names their first place."""
    shed = {**BUSY, "retry_after_s": 2}
    script = Script(response(200, line(1) + line(0, shed) + line(3, shed) + line(2)), response(200, line(1) + line(0)))
    results = await script.run(classify_four)
    assert [(result.index, result.ok) for result in results] == [(n, True) for n in range(4)]
    assert [photos_in(request) for request in script.requests] == [
        ["photo 0", "photo 1", "photo 2", "photo 3"],
        ["photo 0", "photo 3"],
    ]
    assert 2 <= script.waits[0] <= 3


async def test_images_that_are_refused_to_the_end_have_an_error() -> None:
    script = Script(response(200, line(0) + line(1, BUSY) + line(2) + line(3)), *[response(200, line(0, BUSY))] * 3)
    results = await script.run(classify_four)
    assert [result.ok for result in results] == [True, False, True, True]
    assert isinstance(results[1].error, errors.OverloadedError)
    assert len(script.requests) == 4


async def test_a_cut_stream_goes_on_with_the_rest() -> None:
    """The connection ends after two results: only the other two images are sent again."""
    complete = response(200, "".join(map(line, range(4))), "Connection: close")
    cut = complete[: complete.index(line(2).encode()) + 9]
    script = Script(cut, response(200, line(1) + line(0)))
    assert [result.index for result in await script.run(classify_four)] == [0, 1, 2, 3]
    assert photos_in(script.requests[1]) == ["photo 2", "photo 3"]


async def test_a_stream_that_lacks_results_is_an_error() -> None:
    with pytest.raises(UnexpectedResponseError, match="lacks the results"):
        await Script(response(200, line(0))).run(classify_four)


async def test_a_refused_request_ends_the_stream_of_results() -> None:
    script = Script(problem({"status": 401, "code": "unauthorized", "detail": "no API key"}))
    with pytest.raises(errors.UnauthorizedError):
        await script.run(classify_four)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (response(301, "", "Location: https://example.org/"), "redirects to https://example.org/"),
        (response(200, "<html>"), "not JSON: b'<html>'"),
        (response(200, {"results": [{"status": "ok"}]}), "does not fit ImageResult"),
        (response(200, {"hello": "world"}), "lacks 'results'"),
        (response(200, "not gzip at all", "Content-Encoding: gzip"), "content coding is broken"),
    ],
    ids=["redirect", "HTML", "a result without its index", "other JSON", "broken gzip"],
)
async def test_what_is_not_the_api_is_said(answer: bytes, words: str) -> None:
    """A wrong address gives UnexpectedResponseError, not a KeyError."""
    with pytest.raises(UnexpectedResponseError, match=re.escape(words)):
        await Script(answer).run(classify)


async def test_an_error_of_a_proxy_is_readable() -> None:
    """A page of HTML becomes a problem with the status as its code."""
    with pytest.raises(ProblemError, match="responded 404 Reason: '<h1>no</h1>'") as raised:
        await Script(response(404, "<h1>no</h1>", kind="text/html")).run(classify)
    assert (raised.value.code, raised.value.status) == ("http_404", 404)


async def test_a_slow_response_ends_in_time() -> None:
    """A server that never answers gives a TimeoutError."""

    async def never(request: bytes) -> bytes:
        await asyncio.sleep(60)
        return b""

    async with serving(never) as url, AsyncClient(url.removesuffix("/classify"), timeout=0.2) as client:
        with pytest.raises(ResponseTimeoutError, match="no response"):
            await client.classify(b"photo")


def test_an_unreachable_service_is_named() -> None:
    with Client("http://127.0.0.1:9", max_retries=0) as client, pytest.raises(NoResponseError, match=r"127\.0\.0\.1:9"):
        client.classify(b"photo")


async def test_images_at_addresses_of_the_caller() -> None:
    """The client fetches the image; the server there does not get the API key. A failure is that image's."""
    seen: list[bytes] = []

    async def web(request: bytes) -> bytes:
        seen.append(request)
        if b"/old" in request:
            return response(302, "", "Location: /new")
        return response(200, "photo 7") if b"/new" in request else response(404, "")

    script = Script(OK, response(200, line(0)))
    async with serving(web) as url:
        site = url.removesuffix("/classify")
        result = await script.run(lambda operations: run(operations.classify(f"{site}/old")), api_key="secret")
        images = [f"{site}/none", f"{site}/new"]
        results = await script.run(lambda operations: list(iterate(operations.classify_many(images))))
        with pytest.raises(UnreadableImageError, match="/none: status 404"):
            await script.run(lambda operations: run(operations.classify(f"{site}/none")))
    assert (result.ok, result.name) == (True, f"{site}/old")
    assert b"authorization: bearer secret" in script.requests[0].lower()
    assert not any(b"secret" in request for request in seen)
    assert [photos_in(request) for request in script.requests] == [["photo 7"], ["photo 7"]]
    assert isinstance(results[0].error, UnreadableImageError)
    assert results[1].ok
