"""JSON bodies: what costs much is refused before an object is made, errors are short, and null means the default."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import tracemalloc
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.http import json_body, uploads
from serve_app.http.json_body import INLINE_BYTES, MAX_VALUES, check_json
from serve_app.http.schemas import MAX_DETAIL_CHARS
from tests.support.api import is_problem
from tests.support.photos import make_photo

PHOTO = make_photo(0, 64, 48)
B64 = base64.b64encode(PHOTO).decode()
JSON = {"content-type": "application/json"}
INFER = "/v2/models/resnet18/infer"
TENSOR = b'{"inputs":[{"name":"image","datatype":"BYTES",'
SIZE = 400_000  # of each body below; the fixture's limit is 500,000


def filled(before: bytes, unit: bytes, after: bytes) -> bytes:
    """Return a body of about SIZE bytes that repeats a unit."""
    return before + unit * ((SIZE - len(before) - len(after)) // len(unit)) + after


MANY = {
    "numbers for inputs": ("/v1/classify", filled(b'{"inputs":[', b"0,", b"0]}")),
    "objects for inputs": ("/v1/classify", filled(b'{"inputs":[', b"{},", b"{}]}")),
    "valid inputs": ("/v1/classify", filled(b'{"inputs":[', b'{"b64":""},', b'{"b64":""}]}')),
    "unknown members": ("/v1/classify", filled(b"{", b'"a":1,', b'"inputs":[]}')),
    "parameters": ("/predict", filled(b'{"inputs":[{"b64":""}],"parameters":{', b'"a":1,', b'"b":1}}')),
    "a nested parameter": ("/v1/classify", filled(b'{"inputs":[{"b64":""}],"parameters":{"top_k":[', b"[],", b"[]]}}")),
    "brackets": ("/v1/classify", b"[" * SIZE),
    "deep objects": ("/v1/classify", filled(b"", b'{"a":', b"")),
    "members of a vote": ("/v1/feedback", filled(b"{", b'"a":1,', b'"correct":true}')),
    "numbers for tensors": (INFER, filled(b'{"inputs":[', b"0,", b"0]}")),
    "shape": (INFER, filled(TENSOR + b'"data":[],"shape":[', b"1,", b"1]}]}")),
    "bad shape": (INFER, filled(TENSOR + b'"data":[],"shape":[', b'"",', b'""]}]}')),
    "numbers for images": (INFER, filled(TENSOR + b'"shape":[1],"data":[', b"0,", b"0]}]}")),
    "lists for images": (INFER, filled(TENSOR + b'"shape":[1],"data":[', b"[],", b"[]]}]}")),
    "outputs": (INFER, filled(b'{"inputs":[],"outputs":[', b'{"name":"label"},', b'{"name":"label"}]}')),
    "parameters of a tensor": (INFER, filled(TENSOR + b'"shape":[1],"parameters":{', b'"a":1,', b'"b":1}}]}')),
}


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("kind", MANY)
def test_many_values_are_refused_before_an_object_is_made(
    shared_http: TestClient, kind: str, is_compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the values are: the parser is never called, and the answer is short."""

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("the body was parsed")

    for model in (uploads.JsonBody, uploads.RequestModel):
        monkeypatch.setattr(model, "model_validate_json", fail)
    path, body = MANY[kind]
    packed = gzip.compress(body) if is_compressed else body
    coding = {"content-encoding": "gzip"} if is_compressed else {}
    tracemalloc.start()
    refused = shared_http.post(path, content=packed, headers=JSON | coding)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.status_code == 413, refused.text
    assert "values; send each image as one string" in refused.text
    assert len(refused.content) < 500
    assert peak < 10 * SIZE


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/feedback", INFER])
def test_errors_of_large_bodies_are_short(shared_http: TestClient, path: str) -> None:
    """One error per list, few per body, and of each value only its beginning."""
    text = "\x01" * 60_000
    bodies: list[Any] = [
        {"inputs": [0] * 5000},
        {"inputs": [{}] * 3000},
        {"inputs": text, "request_id": text, "label": text},
        {"inputs": [{"id": text, "b64": text, "name": text, "datatype": text, "shape": text}]},
        {"inputs": [{"b64": B64}], "parameters": {"top_k": text, "min_score": text, "explain": text}},
        {"inputs": [{"b64": B64}], "parameters": {"explain": [text] * 3}},
        {text: text, "inputs": []},
        [text],
        text,
    ]
    for body in bodies:
        refused = shared_http.post(path, json=body)
        assert 400 <= refused.status_code < 500
        answer = refused.json()
        assert len(answer.get("detail") or answer["error"]) <= MAX_DETAIL_CHARS
        assert len(refused.content) < 8 * MAX_DETAIL_CHARS
        assert len(refused.headers.get("x-warnings", "")) <= 1000


def test_large_texts_elsewhere_are_quoted_in_part(shared_http: TestClient) -> None:
    """Header, path, content type and label."""
    long = "x" * 50_000
    for refused in (
        shared_http.post("/v1/classify", content=PHOTO, headers={"x-model": long}),
        shared_http.post("/v1/classify", content=PHOTO, headers={"content-type": long}),
        shared_http.post(f"/v1/{long}", content=PHOTO),
        shared_http.get(f"/v2/models/{long}"),
        shared_http.post(INFER, content=b"{}", headers={"inference-header-content-length": long}),
    ):
        assert 400 <= refused.status_code < 500
        assert len(refused.content) < 2 * MAX_DETAIL_CHARS


@pytest.mark.parametrize("number", [b"9" * 300_000, b"0." + b"9" * 300_000, b"1e" + b"9" * 4000, b"-" + b"9" * 5000])
def test_huge_numbers(shared_http: TestClient, number: bytes) -> None:
    body = b'{"inputs":[{"b64":""}],"parameters":{"top_k":' + number + b"}}"
    refused = shared_http.post("/v1/classify", content=body, headers=JSON)
    assert refused.status_code in (400, 422)
    assert len(refused.content) < 1000


def test_the_last_of_two_equal_members_counts(shared_http: TestClient) -> None:
    body = b'{"inputs":[],"inputs":[{"b64":"' + B64.encode() + b'"}],"parameters":{"top_k":9,"top_k":2}}'
    (result,) = shared_http.post("/v1/classify", content=body, headers=JSON).json()["results"]
    assert len(result["predictions"]) == 2


def test_commas_in_texts_are_no_reason_to_refuse(shared_http: TestClient) -> None:
    """As many images as are allowed, each with a file name full of marks."""
    inputs = [{"id": ",:[{" * 40, "b64": B64}] * 8
    assert shared_http.post("/v1/classify", json={"inputs": inputs}).status_code == 200
    assert len(check_json(b'"' + b"," * MAX_VALUES + b'"')) == MAX_VALUES + 2


@pytest.mark.parametrize("path", ["/v1/classify", INFER])
def test_large_bodies_are_parsed_in_a_thread(
    shared_http: TestClient, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones are parsed by the event loop's thread, which is faster."""
    threads: list[str] = []
    decode = json_body.check_json

    def watched(body: bytes, most: int = 0) -> bytes:
        threads.append(threading.current_thread().name)
        return decode(body, most)

    monkeypatch.setattr("serve_app.http.json_body.check_json", watched)
    monkeypatch.setattr("serve_app.http.oip_tensors.check_json", watched)
    for size in (100, INLINE_BYTES):
        shared_http.post(path, json={"inputs": [], "id": "x" * size})
    small, large = threads
    assert small != large
    assert large.startswith("asyncio_")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/feedback", INFER])
def test_other_encodings_are_named(shared_http: TestClient, path: str, encoding: str) -> None:
    refused = shared_http.post(path, content=json.dumps({"inputs": []}).encode(encoding), headers=JSON)
    assert refused.status_code == 400
    assert "UTF-16 or UTF-32; send it as UTF-8" in refused.text


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "text/json", "application/ld+json"]
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_skipped(shared_http: TestClient, mark: bytes, kind: str) -> None:
    headers = {"content-type": kind}
    body = mark + b" \n" + json.dumps({"inputs": [{"b64": B64}]}).encode()
    assert shared_http.post("/v1/classify", content=body, headers=headers).status_code == 200
    vote = mark + json.dumps({"request_id": "req_1", "correct": True}).encode()
    assert shared_http.post("/v1/feedback", content=vote, headers=headers).status_code == 204
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [B64]}
    assert (
        shared_http.post(INFER, content=mark + json.dumps({"inputs": [tensor]}).encode(), headers=headers).status_code
        == 200
    )


@pytest.mark.parametrize(
    "parameters", [None, {}, {"top_k": None, "min_score": None, "explain": None, "explain_class": None}]
)
def test_null_is_the_default_in_classify(shared_http: TestClient, parameters: object) -> None:
    body = {"inputs": [{"id": None, "b64": B64}], "parameters": parameters}
    for path in ("/v1/classify", "/predict"):
        assert shared_http.post(path, json=body).status_code == 200
    assert is_problem(shared_http.post("/v1/classify", json={"inputs": None}), 400, "malformed")
    assert is_problem(shared_http.post("/v1/classify", json={"inputs": [{"b64": None}]}), 400, "malformed")


def test_null_is_the_default_in_infer(shared_http: TestClient) -> None:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [B64], "parameters": None}
    nothing = {"top_k": None, "binary_data_output": None}
    output = {"name": "score", "parameters": None}
    none = {"binary_data": None, "classification": None, "shared_memory_region": None}
    plain = shared_http.post(INFER, json={"inputs": [{**tensor, "parameters": {}}]}).json()["outputs"]
    for body in (
        {"id": None, "parameters": None, "inputs": [tensor], "outputs": None},
        {"parameters": nothing, "inputs": [{**tensor, "parameters": {"binary_data_size": None}}], "outputs": []},
        {"inputs": [tensor], "outputs": [{"name": "label", "parameters": none}, output, {"name": "class_id"}]},
    ):
        answer = shared_http.post(INFER, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"] == plain


def test_null_is_the_default_in_feedback(shared_http: TestClient) -> None:
    for body in ({"correct": True, "label": None, "index": None}, {"correct": None, "label": "cow"}):
        assert shared_http.post("/v1/feedback", json={"request_id": "req_1", **body}).status_code == 204
    refused = shared_http.post("/v1/feedback", json={"request_id": "req_1", "correct": None, "label": None})
    assert "send `correct`" in refused.json()["detail"]
