"""Embeddings over HTTP: JSON, JSON lines, raw float32 and .npy, with the errors of /v1/classify."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from serve_app.config import PredictionLogConfig, WeightsConfig
from serve_app.http.app import create_app
from serve_app.messages import ClassifyRequest, ClassifyResult, Outcome
from serve_app.observability.prediction_log import PredictionLog
from serve_app.prediction_log_format import RAW
from serve_app.preprocessing.transform import preprocess
from tests.support.local_service import LocalService, load
from tests.support.photos import make_photo
from tests.unit.http.conftest import LIMITS
from tests.unit.http.test_oip_tensors import LENGTH, b64, tensor

PHOTOS = [make_photo(seed) for seed in range(3)]
FORM = [("images", (f"{i}.jpg", photo)) for i, photo in enumerate(PHOTOS)]
BROKEN = [*FORM[:1], ("images", ("1.jpg", PHOTOS[1][:500])), ("images", ("2.txt", b"text"))]
RAW_TYPE, NPY = "application/octet-stream", "application/x-npy"


@pytest.fixture(scope="module")
def expected(weights: WeightsConfig) -> np.ndarray:
    """The engine's embeddings of the photos."""
    engine, card = load(weights)
    crops = [preprocess(photo, card.transform, 10**6).pixels for photo in PHOTOS]
    found = [engine.classify([ClassifyRequest(crop, 1, features="pooled")])[0].embedding for crop in crops]
    return np.stack([each for each in found if each is not None])


def close(found: Any, expected: np.ndarray) -> bool:
    """Return whether embeddings are the same but for the rounding of batches of another size."""
    return np.shape(found) == expected.shape and bool(np.allclose(found, expected, rtol=1e-4, atol=1e-5))


def test_json(shared_http: TestClient, expected: np.ndarray) -> None:
    """Each result has its embedding and what was measured, and no classes; the response names the weights."""
    response = shared_http.post("/v1/embed", files=FORM)
    body = response.json()
    assert response.status_code == 200
    assert set(body) == {"id", "model", "results", "summary"}
    assert body["model"]["version"] == response.headers["x-model-version"] == "random"
    assert [(each["index"], each["id"], each["status"]) for each in body["results"]] == [
        (i, f"{i}.jpg", "ok") for i in range(3)
    ]
    assert set(body["results"][0]) == {"index", "id", "status", "image", "timings_ms", "batch_size", "embedding"}
    assert close([each["embedding"] for each in body["results"]], expected)
    assert "model;dur=" in response.headers["server-timing"]


@pytest.mark.parametrize(
    "sent",
    [
        {"content": PHOTOS[0]},
        {"json": {"inputs": [{"b64": b64(PHOTOS[0])}]}},
        {"json": {"inputs": [{"b64": b64(PHOTOS[0])}], "parameters": None}},
    ],
    ids=("body", "json", "null"),
)
def test_an_image_may_come_in_any_body(shared_http: TestClient, expected: np.ndarray, sent: dict[str, Any]) -> None:
    """The bodies are those of /v1/classify."""
    (result,) = shared_http.post("/v1/embed", **sent).json()["results"]
    assert close(result["embedding"], expected[0])


def test_raw_and_npy(shared_http: TestClient, expected: np.ndarray) -> None:
    """Binary responses hold the same numbers, row by row, and say their shape and whose they are."""
    raw, npy = (shared_http.post("/v1/embed", files=FORM, headers={"accept": each}) for each in (RAW_TYPE, NPY))
    for response, kind in ((raw, RAW_TYPE), (npy, NPY)):
        assert (response.status_code, response.headers["content-type"]) == (200, kind)
        assert response.headers["x-embedding-shape"] == "3,512"
        assert len(response.headers["x-model-sha256"]) == 64
    assert len(raw.content) == 3 * 512 * 4
    assert close(np.frombuffer(raw.content, "<f4").reshape(3, 512), expected)
    loaded = np.load(io.BytesIO(npy.content), allow_pickle=False)
    assert loaded.dtype == np.dtype("<f4")
    assert close(loaded, expected)


def test_lines(shared_http: TestClient, expected: np.ndarray) -> None:
    """JSON lines come one by one, without classes, and the summary last."""
    response = shared_http.post("/v1/embed", files=FORM, headers={"accept": "application/jsonl"})
    *lines, summary = map(json.loads, response.text.splitlines())
    assert summary["summary"] == {"ok": 3, "failed": 0}
    assert all("predictions" not in line and "uncertainty" not in line for line in lines)
    assert close([each["embedding"] for each in sorted(lines, key=lambda line: line["index"])], expected)


def test_a_failed_image(shared_http: TestClient, expected: np.ndarray) -> None:
    """In JSON it leaves the others alone; in a matrix there is no place for it, so the request fails with its error."""
    body = shared_http.post("/v1/embed", files=BROKEN).json()
    assert [each["status"] for each in body["results"]] == ["ok", "error", "error"]
    assert close(body["results"][0]["embedding"], expected[0])
    for kind in (RAW_TYPE, NPY):
        response = shared_http.post("/v1/embed", files=BROKEN, headers={"accept": kind})
        assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
        assert response.json()["code"] == "invalid_image"
        assert response.json()["detail"].startswith("image 1: ")
    for kind in ("application/json", RAW_TYPE):
        response = shared_http.post("/v1/embed", content=b"text", headers={"accept": kind})
        assert (response.status_code, response.json()["code"]) == (415, "unsupported_image")


def test_parameters_have_no_effect_and_are_named(shared_http: TestClient) -> None:
    """The route takes none, so those of /v1/classify become warnings."""
    body = shared_http.post("/v1/embed?top_k=3&embed=true", content=PHOTOS[0]).json()
    assert len(body["warnings"]) == 2
    assert "'top_k' is unknown" in body["warnings"][0]


def test_classify_adds_embeddings_on_request(shared_http: TestClient, expected: np.ndarray) -> None:
    """`embed` in the query, a form or JSON adds them to the classes; without it there are none."""
    b64_body = {"inputs": [{"b64": b64(PHOTOS[0])}], "parameters": {"embed": True}}
    for response in (
        shared_http.post("/v1/classify?embed=true", content=PHOTOS[0]),
        shared_http.post("/v1/classify", files=FORM[:1], data={"embed": "true"}),
        shared_http.post("/v1/classify", json=b64_body),
    ):
        (result,) = response.json()["results"]
        assert close(result["embedding"], expected[0])
        assert len(result["predictions"]) == 6
    for query in ("", "?embed=false"):
        assert "embedding" not in shared_http.post(f"/v1/classify{query}", content=PHOTOS[0]).json()["results"][0]


@pytest.mark.parametrize("value", [1, "true", "yes", []])
def test_json_takes_only_true_and_false(shared_http: TestClient, value: Any) -> None:
    """JSON has booleans, so a number or text is a mistake."""
    body = {"inputs": [{"b64": b64(PHOTOS[0])}], "parameters": {"embed": value}}
    response = shared_http.post("/v1/classify", json=body)
    assert response.status_code == 422
    assert response.json()["detail"].startswith("embed: ")


def infer(http: TestClient, outputs: list[dict[str, Any]], *photos: bytes) -> httpx2.Response:
    return http.post("/v2/models/resnet18/infer", json={"inputs": [tensor(*photos)], "outputs": outputs})


def test_an_output_of_the_open_inference_protocol(shared_http: TestClient, expected: np.ndarray) -> None:
    """The metadata lists it; it comes in JSON or binary, alone or beside others, and only if it is named."""
    outputs = shared_http.get("/v2/models/resnet18").json()["outputs"]
    (described,) = (each for each in outputs if each["name"] == "embedding")
    assert (described["datatype"], described["shape"]) == ("FP32", [-1, 512])
    configured = shared_http.get("/v2/models/resnet18/config").json()["output"]
    assert {each["name"]: each["dims"] for each in configured} == {
        "label": [-1],
        "score": [-1],
        "class_id": [-1],
        "embedding": [512],
    }
    label, found = infer(shared_http, [{"name": "label"}, {"name": "embedding"}], *PHOTOS).json()["outputs"]
    assert (label["shape"], found["shape"], found["datatype"]) == ([3, 6], [3, 512], "FP32")
    assert close(np.reshape(found["data"], (3, 512)), expected)
    as_bytes = infer(shared_http, [{"name": "embedding", "parameters": {"binary_data": True}}], *PHOTOS)
    data = as_bytes.content[int(as_bytes.headers[LENGTH]) :]
    assert close(np.frombuffer(data, "<f4").reshape(3, 512), expected)
    plain = shared_http.post("/v2/models/resnet18/infer", json={"inputs": [tensor(PHOTOS[0])]}).json()["outputs"]
    assert [each["name"] for each in plain] == ["label", "score", "class_id"]


@pytest.fixture
def two_models(weights: WeightsConfig) -> Iterator[TestClient]:
    """A service whose weights are replaced between the images of a request."""
    service = LocalService(weights, LIMITS)
    send, calls = service.client.send, 0

    async def changing(requests: list[ClassifyRequest[bytes]], in_flight_hint: int) -> list[Outcome]:
        nonlocal calls
        outcomes = await send(requests, in_flight_hint)
        for outcome in outcomes:
            calls += 1
            if isinstance(outcome, ClassifyResult) and calls % 3 == 2:
                outcome.model = outcome.model.model_copy(update={"version": "newer", "sha256": "1" * 64})
        return outcomes

    service.client.send = changing  # type: ignore[method-assign] # of this client only
    with TestClient(create_app(service)) as http:
        yield http


def test_embeddings_of_two_models_are_never_one_matrix(two_models: TestClient) -> None:
    """They cannot be compared, so binary responses and tensors say retry; JSON names the weights of each result."""
    results = two_models.post("/v1/embed", files=FORM).json()["results"]
    assert [each.get("model", {}).get("version") for each in results] == [None, "newer", None]
    response = two_models.post("/v1/embed", files=FORM, headers={"accept": RAW_TYPE})
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert "retry-after" in response.headers
    refused = infer(two_models, [{"name": "embedding"}], *PHOTOS)
    assert refused.status_code == 503
    assert "different weights" in refused.json()["error"]
    assert infer(two_models, [{"name": "label"}], *PHOTOS).status_code == 200


def test_logged_embeddings_stay_in_the_log(weights: WeightsConfig, tmp_path: Path, expected: np.ndarray) -> None:
    """With `prediction_log.embeddings`, rows have embeddings although no client asked, and responses have none."""
    service = LocalService(weights, LIMITS)
    service.prediction_log = PredictionLog(PredictionLogConfig(folder=str(tmp_path), embeddings=True))
    with TestClient(create_app(service)) as http:
        assert "embedding" not in http.post("/v1/classify", content=PHOTOS[0]).json()["results"][0]
        assert http.post("/v1/classify", content=b"text").status_code == 415
    service.prediction_log.close()
    (file,) = (tmp_path / RAW).glob("*.parquet")
    kept, failed = pq.read_table(file)["embedding"].to_pylist()
    assert failed is None
    np.testing.assert_allclose(np.frombuffer(kept, "<f2"), expected[0], rtol=2e-3, atol=1e-4)
