"""Open Inference Protocol v2 under /v2, in JSON and with binary tensors; the real stages run behind it."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.http as triton
from starlette.testclient import TestClient

from serve_app.config import WeightsConfig
from serve_app.errors import DeadlineExceededError, NotReadyError, OverloadedError
from serve_app.http.app import create_app
from tests.support.local_service import LocalService
from tests.support.photos import make_photo
from tests.support.weights import LABELS
from tests.unit.http.test_oip_tensors import LENGTH, LIMITS, b64, binary, tensor

PHOTOS = [make_photo(seed) for seed in range(3)]
MODEL = "/v2/models/resnet18"
INFER = f"{MODEL}/infer"


@pytest.fixture(scope="module")
def client(weights: WeightsConfig) -> Iterator[tuple[TestClient, LocalService]]:
    """One service for all of this file; it takes longer to make than to ask."""
    service = LocalService(weights, LIMITS)
    with TestClient(create_app(service), raise_server_exceptions=False) as http:
        yield http, service


@pytest.fixture
def service(client: tuple[TestClient, LocalService]) -> Iterator[LocalService]:
    service = client[1]
    yield service
    service.client.failing = None
    service.configure(top_k=10)


@pytest.fixture
def http(client: tuple[TestClient, LocalService]) -> TestClient:
    return client[0]


def columns(response: httpx2.Response) -> dict[str, list[Any]]:
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def expected(http: TestClient, photo: bytes, top_k: int = 6) -> list[tuple[str, float, int]]:
    """Return what /v1/classify returns."""
    (result,) = http.post(f"/v1/classify?top_k={top_k}", content=photo).json()["results"]
    return [(p["label"], p["score"], p["class_id"]) for p in result["predictions"]]


def error(response: httpx2.Response, status: int) -> str:
    """The message of an answer that is an error in the form of the protocol, and in no other."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    message: str = response.json()["error"]
    return message


def test_health_and_metadata(http: TestClient, service: LocalService) -> None:
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    assert "binary_tensor_data" in http.get("/v2").json()["extensions"]
    for path in (MODEL, f"{MODEL}/versions/random"):
        described = http.get(path).json()
        assert (described["name"], described["versions"]) == ("resnet18", ["random"])
        assert [(t["name"], t["datatype"], t["shape"]) for t in described["inputs"]] == [("image", "BYTES", [-1, 1])]
        assert {t["name"]: t["datatype"] for t in described["outputs"]} == {
            "label": "BYTES",
            "score": "FP32",
            "class_id": "INT64",
            "embedding": "FP32",
        }
        assert http.get(f"{path}/ready").json() == {"name": "resnet18", "ready": True}
        assert http.get(f"{path}/config").json()["max_batch_size"] == 8
    (listed,) = http.post("/v2/repository/index").json()
    assert listed == {"name": "resnet18", "version": "random", "state": "READY", "reason": ""}
    service.client.failing = NotReadyError("")
    for path in ("/v2/health/ready", f"{MODEL}/ready"):
        assert "does not answer yet" in error(http.get(path), 503)
    assert http.post("/v2/repository/index").json()[0]["state"] == "UNAVAILABLE"


@pytest.mark.parametrize("shape", [[3], [3, 1]])
@pytest.mark.parametrize("mode", ["json", "binary"])
def test_both_doors_agree(http: TestClient, shape: list[int], mode: str) -> None:
    """Three photos in either mode get what /v1/classify says of each."""
    if mode == "json":
        data = [[b64(p)] for p in PHOTOS] if len(shape) == 2 else [b64(p) for p in PHOTOS]
        response = http.post(INFER, json={"inputs": [tensor(*PHOTOS, shape=shape, data=data)]})
    else:
        response = http.post(f"{MODEL}/versions/random/infer", **binary(*PHOTOS, shape=shape))
    found = columns(response)
    assert [output["shape"] for output in response.json()["outputs"]] == [[3, 6]] * 3
    assert response.json()["model_version"] == "random"
    rows = [row for photo in PHOTOS for row in expected(http, photo)]
    assert list(zip(found["label"], found["class_id"], strict=True)) == [(label, i) for label, _, i in rows]
    assert found["score"] == pytest.approx([score for _, score, _ in rows], abs=1e-4)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_what_tritonclient_writes_and_reads(http: TestClient, binary_in: bool, binary_out: bool) -> None:
    """Bodies made and parsed by tritonclient itself, without its sockets."""
    elements = PHOTOS if binary_in else [b64(photo) for photo in PHOTOS]
    image = triton.InferInput("image", [3, 1], "BYTES")
    image.set_data_from_numpy(np.array(elements, dtype=object).reshape(3, 1), binary_data=binary_in)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("score", "label", "class_id")]
    body, length = triton.InferenceServerClient.generate_request_body(
        [image], outputs=outputs, request_id="7", parameters={"top_k": 2}
    )
    response = http.post(INFER, content=body, headers={LENGTH: str(length)} if length else {})
    assert response.status_code == 200, response.text
    assert (LENGTH in response.headers) == binary_out
    result = triton.InferenceServerClient.parse_response_body(
        response.content, header_length=int(response.headers[LENGTH]) if binary_out else None
    )
    assert result.get_response()["id"] == "7"
    assert result.as_numpy("score").dtype == np.float32
    assert result.as_numpy("class_id").dtype == np.int64
    for row, photo in enumerate(PHOTOS):
        labels, scores, ids = zip(*expected(http, photo, 2), strict=True)
        assert [str(label, "utf8") if binary_out else label for label in result.as_numpy("label")[row]] == list(labels)
        assert result.as_numpy("class_id")[row].tolist() == list(ids)
        assert result.as_numpy("score")[row] == pytest.approx(scores, abs=1e-4)


def test_outputs_are_as_asked_for(http: TestClient, service: LocalService) -> None:
    """A subset in the order asked, each in its own form; the id comes back; the default top_k is live."""
    asked = {
        "id": "a",
        "parameters": {"binary_data_output": True, "priority": 3},
        "inputs": [tensor(PHOTOS[0])],
        "outputs": [{"name": "class_id", "parameters": {"binary_data": False}}, {"name": "score"}],
    }
    service.configure(top_k=2)
    response = http.post(INFER, json=asked)
    end = int(response.headers[LENGTH])
    head = json.loads(response.content[:end])
    (_, best, first), (_, second, other) = expected(http, PHOTOS[0], 2)
    assert head["id"] == "a"
    assert head["outputs"] == [
        {"name": "class_id", "datatype": "INT64", "shape": [1, 2], "data": [first, other]},
        {"name": "score", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
    ]
    assert struct.unpack("<2f", response.content[end:]) == pytest.approx((best, second), abs=1e-6)
    assert "total;dur=" in response.headers["server-timing"]
    assert "id" not in http.post(INFER, json={"inputs": [tensor(PHOTOS[0])]}).json()


def test_classification_as_triton_writes_it(http: TestClient) -> None:
    """`class_count` of an output: strings of score, class id and label; more than there are gives all."""
    outputs = [{"name": "score", "parameters": {"classification": 40}}, {"name": "label"}]
    asked = {"inputs": [tensor(PHOTOS[0])], "outputs": outputs, "parameters": {"top_k": 1}}
    response = http.post(INFER, json=asked)
    best = expected(http, PHOTOS[0])
    assert response.json()["outputs"][0]["datatype"] == "BYTES"
    assert columns(response)["label"] == [best[0][0]]
    for text, (label, score, class_id) in zip(columns(response)["score"], best, strict=True):
        value, *rest = text.split(":")
        assert rest == [str(class_id), label]
        assert len(value.split(".")[1]) == 6
        assert float(value) == pytest.approx(score, abs=1e-5)


def test_what_a_client_sends_wrong_is_a_400(http: TestClient) -> None:
    """The sentences are tested where they are made, in test_oip_tensors.py."""
    assert "not valid JSON" in error(http.post(INFER, content=b"{"), 400)
    assert "'eight' is not a number" in error(http.post(INFER, content=b"{}", headers={LENGTH: "eight"}), 400)
    br = {"content-encoding": "br"}
    assert "'br' is not supported; send gzip" in error(http.post(INFER, content=b"{}", headers=br), 415)


def test_too_much(http: TestClient) -> None:
    """The limits of /v1 hold here, and a body may not inflate past them."""
    assert "9 images in one request" in error(http.post(INFER, **binary(*[b"x"] * 9)), 413)
    assert "image 1: the image has" in error(http.post(INFER, **binary(PHOTOS[0], bytes(200_001))), 413)
    assert "the body has" in error(http.post(INFER, content=bytes(500_001)), 413)
    bomb = gzip.compress(bytes(500_001))
    assert len(bomb) < 1000
    assert "inflates to more" in error(http.post(INFER, content=bomb, headers={"content-encoding": "gzip"}), 413)


@pytest.mark.parametrize(("coding", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(http: TestClient, coding: str, squeeze: Any) -> None:
    """As tritonclient's request_compression_algorithm sends them; the JSON's length is that before compression."""
    plain = binary(PHOTOS[0])
    squeezed = squeeze(plain["content"])
    headers = plain["headers"] | {"content-encoding": coding}
    assert columns(http.post(INFER, content=squeezed, headers=headers)) == columns(http.post(INFER, **plain))
    for broken, says in (
        (squeezed[:-9], "ends before the end"),
        (squeezed + b"x", "continues after the end"),
        (b"plain", f"not valid {coding}, which its Content-Encoding declares"),
    ):
        assert says in error(http.post(INFER, content=broken, headers=headers), 400)


def test_a_failing_image_fails_the_request_and_is_named(http: TestClient) -> None:
    for broken, status in ((b"no image", 415), (PHOTOS[0][:3000], 422)):
        response = http.post(INFER, **binary(PHOTOS[0], broken, PHOTOS[1]))
        assert error(response, status).startswith("image 1: ")
        assert "retry-after" not in response.headers


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (OverloadedError("busy"), 503),
        (NotReadyError("starting"), 503),
        (DeadlineExceededError("late"), 504),
        (RuntimeError("a bug, with its secrets"), 500),
    ],
)
def test_what_the_server_does_wrong(http: TestClient, service: LocalService, failure: Exception, status: int) -> None:
    """What is worth trying again says when; nothing internal is told."""
    service.client.failing = failure
    response = http.post(INFER, **binary(PHOTOS[0]))
    assert "secrets" not in error(response, status)
    assert ("retry-after" in response.headers) == (status != 500)


def test_unknown_names_are_404_in_the_same_form(http: TestClient) -> None:
    assert "the model is 'resnet18'" in error(http.get("/v2/models/vgg"), 404)
    assert "the model is 'resnet18'" in error(http.post("/v2/models/vgg/infer", **binary(PHOTOS[0])), 404)
    assert "known versions: 'random'" in error(http.get(f"{MODEL}/versions/2/ready"), 404)
    assert "/docs" in error(http.get("/v2/nope"), 404)
    assert "/docs" in error(http.get(INFER), 405)
    assert http.get("/v2nope").headers["content-type"] == "application/problem+json"


def test_images_are_counted_at_both_doors(http: TestClient) -> None:
    before = http.get("/v1/status").json()["images"]
    http.post(INFER, **binary(PHOTOS[0], b"no image"))
    after = http.get("/v1/status").json()["images"]
    assert (after["ok"] - before["ok"], after["failed"] - before["failed"]) == (1, 1)


def test_labels_of_the_metadata_are_the_models(http: TestClient) -> None:
    found = columns(http.post(INFER, **binary(PHOTOS[0])))
    assert [LABELS[i] for i in found["class_id"]] == found["label"]
