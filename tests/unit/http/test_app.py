"""/v1/classify and the other routes: bodies, parameters, results. The real stages run behind them."""

from __future__ import annotations

import base64
import json
import re

import httpx2
import pytest
from starlette.testclient import TestClient

from serve_app.errors import (
    NotReadyError,
)
from serve_app.http.uploads import Parameters
from tests.support.api import is_problem, post
from tests.support.local_service import LocalService
from tests.support.photos import make_photo
from tests.support.weights import LABELS

JPEG = {"content-type": "image/jpeg"}
PHOTO = make_photo()


def test_one_raw_image(http: TestClient) -> None:
    """The fast path: the image is the body."""
    response = http.post("/v1/classify", content=PHOTO, headers=JPEG)
    body = response.json()
    assert response.status_code == 200
    assert response.headers["x-model-version"] == body["model"]["version"] == "random"
    (result,) = body["results"]
    assert (result["index"], result["status"], result["image"]["width"]) == (0, "ok", 320)
    assert [p["label"] for p in result["predictions"]] == [LABELS[p["class_id"]] for p in result["predictions"]]
    assert sum(p["score"] for p in result["predictions"]) == pytest.approx(1, abs=1e-4)
    assert set(result["timings_ms"]) == {"decode", "queue", "model"}
    assert body["summary"] == {"ok": 1, "failed": 0}
    assert [entry.split(";")[0] for entry in response.headers["server-timing"].split(", ")] == [
        "decode",
        "queue",
        "model",
        "total",
    ]


def test_curls_own_content_type_is_fine(http: TestClient) -> None:
    """`curl --data-binary @photo.jpg` without -H says that it sends a form; the bytes say otherwise."""
    curl = {"content-type": "application/x-www-form-urlencoded"}
    assert http.post("/v1/classify", content=PHOTO, headers=curl).status_code == 200


def test_three_kinds_of_body_agree(http: TestClient) -> None:
    """Raw, form and JSON give the same answer for the same bytes."""
    raw = http.post("/v1/classify", content=PHOTO, headers={"content-type": "application/octet-stream"}).json()
    form = http.post("/v1/classify", files={"file": ("a.jpg", PHOTO)}).json()
    inputs = [{"id": "a", "b64": base64.b64encode(PHOTO).decode()}]
    plain = http.post("/v1/classify", json={"inputs": inputs}).json()
    assert raw["results"][0]["predictions"] == form["results"][0]["predictions"] == plain["results"][0]["predictions"]
    assert (form["results"][0]["id"], plain["results"][0]["id"]) == ("a.jpg", "a")


def test_many_images_keep_their_order_and_errors(http: TestClient) -> None:
    """Broken ones among good ones: 200, each with its own result, in order."""
    response = post(http, PHOTO, b"no image", make_photo(1), PHOTO[:3000], make_photo(2))
    results = response.json()["results"]
    assert response.status_code == 200
    assert [r["status"] for r in results] == ["ok", "error", "ok", "error", "ok"]
    assert [r["id"] for r in results] == [f"{i}.jpg" for i in range(5)]
    assert [results[i]["error"]["code"] for i in (1, 3)] == ["unsupported_image", "invalid_image"]
    assert response.json()["summary"] == {"ok": 3, "failed": 2}


def test_top_k_and_min_score(http: TestClient, service: LocalService) -> None:
    """From query, form or JSON; the default is live."""

    def count(response: httpx2.Response) -> int:
        return len(response.json()["results"][0]["predictions"])

    assert count(http.post("/v1/classify?top_k=2", content=PHOTO)) == 2
    assert count(post(http, PHOTO, data={"top_k": "3"})) == 3
    inputs = [{"b64": base64.b64encode(PHOTO).decode()}]
    assert count(http.post("/v1/classify", json={"inputs": inputs, "parameters": {"top_k": 4}})) == 4
    assert count(http.post("/v1/classify?min_score=1", content=PHOTO)) == 0
    service.configure(top_k=1)
    assert count(http.post("/v1/classify", content=PHOTO)) == 1


def test_abstain_follows_the_threshold(http: TestClient, service: LocalService) -> None:
    def abstains() -> bool:
        flag: bool = http.post("/v1/classify", content=PHOTO).json()["results"][0]["uncertainty"]["abstain"]
        return flag

    service.configure(abstain_below=1)
    assert abstains()
    service.configure(abstain_below=0)
    assert not abstains()


def test_heat_maps_add_up_on_the_wire(http: TestClient) -> None:
    """mean(values) + bias == logit, for the best class and for a chosen one."""
    for query in ("explain=cam", "explain=cam&explain_class=4"):
        (result,) = http.post(f"/v1/classify?{query}", content=PHOTO).json()["results"]
        found = result["explanation"]
        expected = 4 if "class" in query else result["predictions"][0]["class_id"]
        assert (found["class_id"], found["label"]) == (expected, LABELS[expected])
        values = [value for row in found["values"] for value in row]
        assert [len(found["values"]), len(found["values"][0])] == found["grid"]
        assert abs(sum(values) / len(values) + found["bias"] - found["logit"]) < 1e-3


def test_jsonl_streams_results_then_a_summary(http: TestClient) -> None:
    response = post(http, PHOTO, b"no image", make_photo(1), headers={"accept": "application/jsonl"})
    *results, last = map(json.loads, response.text.splitlines())
    assert response.headers["content-type"].startswith("application/jsonl")
    assert sorted(r["index"] for r in results) == [0, 1, 2]
    assert {r["index"]: r["status"] for r in results}[1] == "error"
    assert last["summary"] == {"ok": 2, "failed": 1}
    assert last["model"]["version"] == "random"


def test_predict_keeps_the_original_shape(http: TestClient) -> None:
    """A list of [label, probability] pairs per image."""
    files = [("images", ("a.jpg", PHOTO)), ("images", ("b.txt", b"?"))]
    answer = http.post("/predict", files=files).json()
    assert [label in LABELS and 0 <= score <= 1 for label, score in answer[0]] == [True] * 6
    assert answer[1]["code"] == "unsupported_image"


def test_health_and_description(http: TestClient, service: LocalService) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ready", "version": "random"}
    body = http.get("/v1/models").json()
    assert (body["models"][0]["classes"], body["limits"]["max_images"]) == (6, 8)
    assert http.get("/v1/models/resnet18/labels").json()["labels"] == list(LABELS)
    assert is_problem(http.get("/v1/models/other/labels"), 404, "unknown_model")
    service.client.failing = NotReadyError("")
    assert is_problem(http.get("/readyz"), 503, "not_ready")


def test_request_ids_come_back(http: TestClient) -> None:
    assert "x-request-id" not in http.get("/healthz", headers={"x-request-id": "abc"}).headers  # Ray Serve returns it
    assert http.get("/healthz").headers["x-request-id"].startswith("req_")
    assert http.post("/v1/classify", content=PHOTO, headers={"x-request-id": "abc"}).json()["id"] == "abc"


@pytest.mark.parametrize(
    "sent", ["a b", "a/b", "é", "a\n", "ab\x7f", "", "a" * 129, "a" * 2**20, "<script>", "../x", "a,b"]
)
def test_a_request_id_that_is_not_accepted_is_replaced(http: TestClient, sent: str) -> None:
    """Neither echoed nor used."""
    refused = http.post("/v1/classify", content=b"", headers={"x-request-id": sent.encode()})  # type: ignore[dict-item]
    assert is_problem(refused, 400, "malformed")
    assert re.fullmatch("req_[0-9a-f]{32}", refused.headers["x-request-id"])


@pytest.mark.parametrize("sent", ["a", "Az09_.-", "a" * 128, "4463ab92-0b6c-4c55-a2c1-9ef4d9c4c5e9"])
def test_an_accepted_request_id_is_used(http: TestClient, sent: str) -> None:
    refused = http.post("/v1/classify", content=b"", headers={"x-request-id": sent})
    assert refused.json()["request_id"] == sent


def test_a_long_path_is_not_echoed(http: TestClient) -> None:
    """The problem of an unknown path names its start."""
    assert len(http.get("/" + "a" * 60_000).content) < 1000


def test_status_counts_what_happened(http: TestClient) -> None:
    post(http, PHOTO, b"no image", make_photo(1))
    status = http.get("/v1/status").json()
    assert status["images"] == {"ok": 2, "failed": 1, "in_flight": 0}
    assert status["errors"] == {"unsupported_image": 1}
    assert status["mean_batch_size"] >= 1
    assert set(status["timings_ms"]) == {"decode", "queue", "model"}


def test_docs_work_without_the_internet(http: TestClient) -> None:
    """The page loads its scripts from us, and OpenAPI describes every body."""
    page = http.get("/docs").text
    assert "https://" not in page.replace("https://fastapi", "")
    assert http.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200
    described = http.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]
    assert set(described["requestBody"]["content"]) == {
        "image/*",
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    }
    assert {p["name"] for p in described["parameters"]} == set(Parameters.model_fields)
