"""Which media type a response has, for what a client accepts."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from serve_app.http.classify import JSON, JSONL
from serve_app.http.negotiation import choose_media_type
from tests.support.photos import make_photo

JSONL_TYPE, NDJSON = JSONL[:2]


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/json", JSON),
        ("application/x-ndjson", NDJSON),
        ("Application/X-NDJSON", NDJSON),
        ("application/jsonl", JSONL_TYPE),
        ("application/x-jsonlines", "application/x-jsonlines"),
        ("application/jsonl; charset=utf-8", JSONL_TYPE),
        # equal weights: JSON, unless JSON is only meant by a wildcard
        ("application/jsonl, application/json", JSON),
        ("application/x-ndjson, */*", NDJSON),
        ("application/x-ndjson, application/*", NDJSON),
        # weights
        ("application/json, application/x-ndjson;q=0.5", JSON),
        ("application/json;q=0.5, application/x-ndjson", NDJSON),
        ("application/json;q=0.5,application/x-ndjson;q=0.6", NDJSON),
        ("application/json ; q = 0.9 , application/x-ndjson ; Q=0.95", NDJSON),
        ("application/jsonl;q=0.1, application/x-ndjson;q=0.2", NDJSON),
        ("application/jsonl;q=0.1, */*", JSON),
        ("application/json;q=0, */*", JSONL_TYPE),
        ("application/jsonl;q=0", JSON),
        ("application/jsonl;q=0.000, application/json;q=0.001", JSON),
        ("application/json;version=1;q=0.2, application/jsonl;q=0.3", JSONL_TYPE),
        # browsers and other clients
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", JSON),
        ("application/json, text/plain, */*", JSON),
        ("text/html", JSON),
        ("application/jsonlines-not", JSON),
        # broken
        (",,;q=1,", JSON),
        ("application/jsonl;q=high", JSONL_TYPE),
        ("application/jsonl;q=2, application/json;q=0.5", JSONL_TYPE),
        ("a/b," * 100_000 + "application/jsonl", JSON),
    ],
)
def test_the_preferred_type_wins(accept: str, chosen: str) -> None:
    assert choose_media_type(Headers({"accept": accept}), (JSON, *JSONL)) == chosen


def test_repeated_headers_are_one_list() -> None:
    headers = Headers(raw=[(b"accept", b"application/json;q=0.1"), (b"accept", b"application/x-ndjson")])
    assert choose_media_type(headers, (JSON, *JSONL)) == NDJSON
    assert choose_media_type(Headers({}), (JSON, *JSONL)) == JSON


@pytest.mark.parametrize("accept", [*JSONL, f"{JSON};q=0.5, {NDJSON}"])
def test_the_response_has_the_type_that_was_asked_for(shared_http: TestClient, accept: str) -> None:
    response = shared_http.post("/v1/classify", content=make_photo(), headers={"accept": accept})
    assert response.headers["content-type"] == accept.rpartition(", ")[2]
    assert len(response.text.splitlines()) == 2
