"""Heads over HTTP: taught from photos, used by every protocol, named, and bounded."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.batch.job_store import JobStore
from serve_app.batch.supervisor import predict_command
from serve_app.config import JobsConfig, WeightsConfig
from serve_app.errors import HeadBackboneChangedError, OverloadedError
from serve_app.heads.versions import read_head
from tests.support.local_service import LocalService
from tests.support.taught_photos import as_zip, photo_of, photos_of
from tests.support.teaching import COLORS, PHOTOS, best, limit, problem, service_with_heads, teach


@pytest.fixture
def service(weights: WeightsConfig, tmp_path: Path) -> LocalService:
    return service_with_heads(weights, tmp_path)


def test_a_taught_head_answers(http: TestClient) -> None:
    """Photos that it has not seen get their class, in the same answer as the model's own classes."""
    response = teach(http)
    assert response.status_code == 201
    head = response.json()
    assert (head["labels"], head["photos"], head["mine"], head["status"]) == (list(COLORS), 12, True, "ready")
    assert response.headers["etag"] == head["etag"]
    assert response.headers["location"] == "/v1/heads/colors"
    assert [each["class"] for each in head["examples"]] == [color for color in COLORS for _ in range(4)]
    for color in COLORS:
        (result,) = http.post("/v1/classify?head=colors", content=photo_of(color, 90)).json()["results"]
        answer = result["heads"]["colors"]
        assert answer["predictions"][0]["label"] == color
        assert (answer["version"], answer["none_of_these"]) == (head["version"], False)
        assert len(result["predictions"]) == 6
    assert http.get("/v1/heads/colors").json() == head


def test_a_zip_teaches_the_same_head(http: TestClient) -> None:
    """A folder per class, also below one more folder."""
    for name, folder in (("flat", ""), ("deep", "my photos/")):
        body, headers = as_zip(PHOTOS, folder), {"content-type": "application/zip"}
        response = http.put(f"/v1/heads/{name}", content=body, headers=headers)
        assert (response.status_code, response.json()["labels"]) == (201, list(COLORS))
        assert best(http, photo_of("green", 91), name) == "green"


@pytest.mark.parametrize("place", ["query", "form", "json"])
def test_parameters_of_heads(http: TestClient, place: str) -> None:
    """Several heads, top_k, the class map and similar photos; in the query, a form or JSON."""
    teach(http)
    teach(http, "two", photos_of("red", "gray", count=4))
    given = {"head": "colors,two", "top_k": 2, "explain": "cam", "explain_class": 1, "similar": 3}
    photo = photo_of("red", 92)
    if place == "query":
        response = http.post("/v1/classify", params=given, content=photo)
    elif place == "form":
        fields = {key: str(value) for key, value in given.items()}
        response = http.post("/v1/classify", data=fields, files={"images": photo})
    else:
        body = {"inputs": [{"b64": base64.b64encode(photo).decode()}], "parameters": given}
        response = http.post("/v1/classify", json=body)
    (result,) = response.json()["results"]
    assert "explanation" not in result
    assert {name: answer["predictions"][0]["label"] for name, answer in result["heads"].items()} == {
        "colors": "red",
        "two": "red",
    }
    answer, labels = result["heads"]["colors"], [each["label"] for each in result["heads"]["colors"]["predictions"]]
    assert len(labels) == 2
    drawn = answer["explanation"]
    values = [value for row in drawn["values"] for value in row]
    assert drawn["label"] == "green"
    assert sum(values) / len(values) + drawn["bias"] == pytest.approx(drawn["logit"], abs=1e-2)
    distances = [each["distance"] for each in answer["similar"]]
    assert [each["class"] for each in answer["similar"]] == ["red"] * 3
    assert distances == sorted(distances)


def test_other_protocols_use_a_head_by_its_name(http: TestClient) -> None:
    """Hugging Face, TorchServe and the Open Inference Protocol; unknown names stay unknown models."""
    version = teach(http).json()["version"]
    photo = photo_of("blue", 93)
    assert http.post("/models/colors", content=photo).json()[0]["label"] == "blue"
    assert next(iter(http.post("/predictions/colors", content=photo).json())) == "blue"
    assert http.get("/v2/models/colors").json()["versions"] == [version]
    assert http.get("/v2/models/colors/ready").json() == {"name": "colors", "ready": True}
    assert http.get(f"/v2/models/colors/versions/{version}/config").json()["name"] == "colors"
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(photo).decode()]}
    answer = http.post("/v2/models/colors/infer", json={"inputs": [tensor]}).json()
    assert (answer["model_name"], answer["model_version"]) == ("colors", version)
    assert answer["outputs"][0]["data"][0] == "blue"
    assert len(http.post("/models/resnet18?top_k=6", content=photo).json()) == 6
    for path in ("/models/none", "/predictions/none", "/v2/models/none/infer", "/models/colors%2Ctwo"):
        assert http.post(path, content=photo).status_code == 404
    assert http.get("/v2/models/colors/versions/7").status_code == 404
    assert [head["name"] for head in http.get("/v1/models").json()["heads"]] == ["colors"]


def test_bounds_have_their_own_errors(http: TestClient, service: LocalService) -> None:
    """Photos per request, class and head, classes, heads and bytes of a key; nothing is stored beyond them."""
    teach(http, "first", photos_of("red", "green", count=3))
    bounds = [
        ({"max_photos_per_request": 11}, (413, "too_many_photos")),
        ({"max_photos_per_class": 3}, (413, "too_many_photos")),
        ({"max_photos": 11}, (413, "too_many_photos")),
        ({"max_classes": 2}, (413, "too_many_classes")),
        ({"max_heads": 1}, (409, "too_many_heads")),
        ({"max_bytes": 1000}, (409, "too_many_heads")),
    ]
    assert service.heads
    default = service.heads.config
    for change, expected in bounds:
        service.keep_heads(default.model_copy(update=change))
        assert problem(teach(http)) == expected, change
        body, headers = as_zip(PHOTOS), {"content-type": "application/zip"}
        assert problem(http.put("/v1/heads/colors", content=body, headers=headers)) == expected, change
    limit(service, max_photos_per_class=3, max_heads=100, max_bytes=10**9)
    grown = http.post("/v1/heads/first/examples", files={"red": photo_of("red", 60)})
    assert problem(grown) == (413, "too_many_photos")
    assert [head["name"] for head in http.get("/v1/heads").json()["heads"]] == ["first"]


@pytest.mark.parametrize("name", ["Colors", "-x", "x" * 64, "a.b", "a%20b", "resnet18"])
def test_names_of_heads(http: TestClient, name: str) -> None:
    """Other characters, longer names and the name of the model are refused."""
    assert problem(teach(http, name)) == (422, "invalid_parameter")


@pytest.mark.parametrize("name", ["", " ", "x" * 81, "a\u0007"])
def test_names_of_classes(http: TestClient, name: str) -> None:
    """Empty, long and unprintable names are refused before anything is decoded."""
    body = as_zip({name or ".": [b"x"]}) if name in ("", "a\u0007") else None
    if body is None:
        response = http.put("/v1/heads/colors", files={name: ("1.jpg", b"x")})
    else:
        response = http.put("/v1/heads/colors", content=body, headers={"content-type": "application/zip"})
    assert problem(response) in ((422, "invalid_parameter"), (422, "invalid_archive"))


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (b"", "application/zip", (400, "malformed")),
        (b"PK\3\4 no zip", "application/zip", (400, "malformed")),
        (as_zip({}), "application/zip", (400, "malformed")),
        (as_zip({"..": [b"x"]}), "application/zip", (422, "invalid_archive")),
        (photo_of("red", 0), "image/jpeg", (415, "unsupported_image")),
        (b"--x--\r\n", "multipart/form-data; boundary=x", (400, "malformed")),
    ],
)
def test_bodies_that_teach_nothing(http: TestClient, body: bytes, kind: str, expected: tuple[int, str]) -> None:
    """Each has its error."""
    assert problem(http.put("/v1/heads/colors", content=body, headers={"content-type": kind})) == expected


def test_a_busy_service_is_waited_for(http: TestClient, service: LocalService, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal of a stage in the middle of teaching does not fail it."""
    send, refusals = service.client.send, [OverloadedError("busy")] * 3

    async def refuse_first(requests: Any, in_flight_hint: int) -> Any:
        if refusals:
            raise refusals.pop()
        return await send(requests, in_flight_hint)

    monkeypatch.setattr(service.client, "send", refuse_first)
    assert teach(http).status_code == 201
    assert not refusals


def test_heads_are_off_by_default(http: TestClient, service: LocalService) -> None:
    """Every route says so, and the list of models says null."""
    service.heads = None
    for method, path in (("GET", ""), ("PUT", "/x"), ("GET", "/x"), ("DELETE", "/x"), ("POST", "/x/rollback")):
        assert problem(http.request(method, f"/v1/heads{path}")) == (404, "heads_off")
    assert problem(http.post("/v1/classify?head=x", content=photo_of("red", 0))) == (404, "heads_off")
    assert http.get("/v1/models").json()["heads"] is None


def test_a_job_keeps_the_version_that_it_was_submitted_with(
    http: TestClient, service: LocalService, tmp_path: Path
) -> None:
    """Its folder holds the head, so the job does not change when the head does; a job takes one head."""
    service.configure(jobs=JobsConfig(folder=str(tmp_path / "jobs")))
    version = teach(http).json()["version"]
    archive, headers = as_zip(photos_of("red", count=2)), {"content-type": "application/zip"}
    job = http.post("/v1/jobs?head=colors", content=archive, headers=headers).json()
    assert job["head"] == {"name": "colors", "version": version}
    http.delete("/v1/heads/colors")
    store = JobStore(tmp_path / "jobs")
    command = predict_command(store, job["id"], None, None)
    folder = Path(command[command.index("--head") + 1])
    head = read_head(folder, service.client.card.ref)
    assert head.labels == COLORS
    with pytest.raises(HeadBackboneChangedError, match="taught on weights"):
        read_head(folder, service.client.card.ref.model_copy(update={"sha256": "0" * 64}))
    teach(http, "two")
    teach(http)
    assert problem(http.post("/v1/jobs?head=colors,two", content=archive, headers=headers)) == (
        422,
        "invalid_parameter",
    )


@pytest.mark.parametrize(("format", "start"), [("safetensors", b"PK"), ("onnx", b"\x08")])
def test_a_head_is_exported(http: TestClient, format: str, start: bytes) -> None:
    """In a process of its own; the file is named after the head."""
    teach(http)
    response = http.get("/v1/heads/colors/export", params={"format": format})
    assert response.status_code == 200, response.text
    assert response.content.startswith(start)
    assert "colors." in response.headers["content-disposition"]
    assert problem(http.get("/v1/heads/colors/export?format=h5")) == (422, "invalid_parameter")
