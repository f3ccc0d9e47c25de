"""Heads over HTTP: taught from photos, used by every protocol, changed with care, and bounded."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from serve_app.batch.job_store import JobStore
from serve_app.batch.supervisor import predict_command
from serve_app.config import JobsConfig, LimitsConfig, WeightsConfig
from serve_app.errors import HeadBackboneChangedError, OverloadedError
from serve_app.heads.versions import read_head
from serve_app.heads_config import HeadsConfig
from tests.support.local_service import LocalService
from tests.support.photos import make_photo
from tests.support.taught_photos import as_form, as_zip, photo_of, photos_of
from tests.support.weights import publish_random

COLORS = ("blue", "green", "red")
PHOTOS = photos_of(*COLORS, count=4)


@pytest.fixture
def service(weights: WeightsConfig, tmp_path: Path) -> LocalService:
    service = LocalService(weights, LimitsConfig(max_image_bytes=200_000, max_body_bytes=1_000_000, deadline_s=600))
    service.keep_heads(HeadsConfig(folder=str(tmp_path / "heads")))
    return service


def limit(service: LocalService, **limits: Any) -> None:
    """Change the settings of heads."""
    assert service.heads
    service.keep_heads(service.heads.config.model_copy(update=limits))


def teach(
    http: TestClient, name: str = "colors", photos: dict[str, list[bytes]] = PHOTOS, **options: Any
) -> httpx2.Response:
    """Teach a head by form."""
    return http.put(f"/v1/heads/{name}", files=as_form(photos), **options)


def best(http: TestClient, photo: bytes, head: str = "colors") -> str:
    """Return the best class that a head gives a photo."""
    answer = http.post("/v1/classify", params={"head": head}, content=photo).json()
    label: str = answer["results"][0]["heads"][head]["predictions"][0]["label"]
    return label


def problem(response: httpx2.Response) -> tuple[int, str]:
    """Return status and code of an error."""
    return response.status_code, response.json()["code"]


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


def test_a_broken_photo_is_named_and_nothing_is_stored(http: TestClient) -> None:
    """Neither a new head nor a new version of one; the error is that of the photo."""
    broken = {**PHOTOS, "red": [*PHOTOS["red"][:2], b"text", make_photo()[:900]]}
    response = teach(http, photos=broken)
    assert response.status_code in (415, 422)
    assert "class 'red', photo 1" in response.json()["detail"]
    assert "nothing was stored" in response.json()["detail"]
    assert problem(http.get("/v1/heads/colors")) == (404, "unknown_head")
    before = teach(http).json()
    large = http.post("/v1/heads/colors/examples", files={"red": bytes(200_001)})
    assert problem(large) == (413, "too_large")
    assert "class 'red', photo 1" in large.json()["detail"]
    assert http.get("/v1/heads/colors").json() == before


def test_photos_are_added_moved_and_deleted(http: TestClient) -> None:
    """Each change makes a version; the same photo in the same class counts once."""
    first = teach(http, photos=photos_of("red", "green", count=4)).json()
    added = http.post("/v1/heads/colors/examples", files=as_form(photos_of("blue", "red", count=4))).json()
    assert (added["labels"], added["photos"], len(added["warnings"])) == (list(COLORS), 12, 4)
    assert added["version"] != first["version"]
    moved_id = added["examples"][0]["id"]
    path = f"/v1/heads/colors/examples/{moved_id}"
    moved = http.patch(path, json={"class": " violet "}).json()
    assert {each["id"]: each["class"] for each in moved["examples"]}[moved_id] == "violet"
    deleted = http.delete(path).json()
    assert (deleted["photos"], deleted["labels"]) == (11, list(COLORS))
    assert deleted["versions"] == [deleted["version"]]  # all earlier ones held the embedding
    assert problem(http.delete(path)) == (404, "unknown_head")
    again = http.post("/v1/heads/colors/examples", files=as_form(photos_of("blue", count=4)))
    assert again.json()["version"] == deleted["version"]


def test_two_writers_do_not_overwrite_each_other(http: TestClient) -> None:
    """Of two who saw the same state, the second gets 412, on every route that changes a head."""
    etag = teach(http, headers={"if-none-match": "*"}).headers["etag"]
    seen = {"if-match": etag}
    changed = teach(http, headers=seen)
    assert (changed.status_code, changed.headers["etag"] != etag) == (200, True)
    example = changed.json()["examples"][0]["id"]
    late = [
        teach(http, headers=seen),
        teach(http, headers={"if-none-match": "*"}),
        http.post("/v1/heads/colors/examples", files={"red": photo_of("red", 50)}, headers=seen),
        http.patch(f"/v1/heads/colors/examples/{example}", json={"class": "x"}, headers=seen),
        http.delete(f"/v1/heads/colors/examples/{example}", headers=seen),
        http.patch("/v1/heads/colors", json={"public": True}, headers=seen),
        http.post("/v1/heads/colors/rollback", headers=seen),
        http.delete("/v1/heads/colors", headers=seen),
        teach(http, "new", headers=seen),
    ]
    assert [problem(each) for each in late] == [(412, "precondition_failed")] * 9
    assert http.get("/v1/heads/colors").json() == changed.json()
    assert http.get("/v1/heads/colors", headers={"if-none-match": changed.headers["etag"]}).status_code == 304
    assert http.delete("/v1/heads/colors", headers={"if-match": changed.headers["etag"]}).status_code == 204
    assert problem(http.post("/v1/classify?head=colors", content=photo_of("red", 1))) == (404, "unknown_head")


def test_a_rollback_serves_the_version_before(http: TestClient) -> None:
    """Without a body the one before, with a body the named one; a version that does not exist is unknown."""
    first = teach(http, photos=photos_of("red", "green", count=4)).json()
    second = teach(http).json()
    back = http.post("/v1/heads/colors/rollback").json()
    assert (back["version"], back["labels"]) == (first["version"], ["green", "red"])
    assert best(http, photo_of("green", 94)) == "green"
    forward = http.post("/v1/heads/colors/rollback", json={"version": second["version"]}).json()
    assert forward["labels"] == list(COLORS)
    for name in ("none", "../x"):
        assert problem(http.post("/v1/heads/colors/rollback", json={"version": name})) == (404, "unknown_head")
    http.post("/v1/heads/colors/rollback")
    assert problem(http.post("/v1/heads/colors/rollback")) == (404, "unknown_head")


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


def test_kept_photos(http: TestClient, service: LocalService) -> None:
    """By default none is kept; with `keep_photos` the owner gets the file and a thumbnail, and the disk has it."""
    example = teach(http).json()["examples"][0]
    assert example["photo"] is None
    assert http.get(f"/v1/heads/colors/examples/{example['id']}/photo").status_code == 404
    assert service.heads
    assert not [path for path in service.heads.store.folder.rglob("photos/*")]
    limit(service, keep_photos=True)
    example = teach(http, "kept").json()["examples"][0]
    assert http.get(example["photo"]).content == PHOTOS["blue"][0]
    small = http.get(example["photo"], params={"thumbnail": True})
    assert (small.headers["content-type"], small.content[:2]) == ("image/jpeg", b"\xff\xd8")
    answer = http.post("/v1/classify?head=kept&similar=1", content=PHOTOS["blue"][0]).json()["results"][0]
    assert answer["heads"]["kept"]["similar"][0]["photo"] == example["photo"]
    http.delete("/v1/heads/kept")
    assert http.get(example["photo"]).status_code == 404
    assert not [path for path in service.heads.store.folder.rglob("photos/*")]


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


def test_another_backbone_is_a_conflict(http: TestClient, service: LocalService, tmp_path: Path) -> None:
    """Without kept photos a head of other weights answers 409 with what to do, and is taught again by PUT."""
    teach(http)
    service.client.swap(publish_random(tmp_path, seed=5, version="other"))
    response = http.post("/v1/classify?head=colors", content=photo_of("red", 95))
    assert problem(response) == (409, "head_backbone_changed")
    assert "PUT /v1/heads/colors" in response.json()["detail"]
    assert problem(http.post("/v1/heads/colors/examples", files={"red": photo_of("red", 96)})) == (
        409,
        "head_backbone_changed",
    )
    assert http.get("/v1/heads/colors").json()["status"] == "backbone_changed"
    assert teach(http).json()["status"] == "ready"
    assert best(http, photo_of("red", 95)) == "red"
    assert problem(http.post("/v1/heads/colors/rollback")) == (409, "head_backbone_changed")


def test_kept_photos_fit_a_head_again(http: TestClient, service: LocalService, tmp_path: Path) -> None:
    """After the weights changed, the first request waits for the fit; both versions answer for their own weights."""
    limit(service, keep_photos=True)
    first, weights = teach(http).json(), service.client.weights
    other = publish_random(tmp_path, seed=5, version="other")
    service.client.swap(other)
    answer = http.post("/v1/classify?head=colors", content=photo_of("red", 95)).json()
    head = http.get("/v1/heads/colors").json()
    assert (head["status"], head["backbone"]["version"]) == ("ready", "other")
    assert [each["id"] for each in head["examples"]] == [each["id"] for each in first["examples"]]
    said = answer["results"][0]["heads"]["colors"]
    assert (answer["model"]["version"], said["version"]) == ("other", head["version"])
    assert said["predictions"][0]["label"] == "red"
    service.client.swap(weights)
    answer = http.post("/v1/classify?head=colors", content=photo_of("red", 95)).json()
    assert answer["results"][0]["heads"]["colors"]["version"] == first["version"]
    assert http.get("/v1/heads/colors").json()["version"] == head["version"]  # no third version was made


def test_heads_are_off_by_default(http: TestClient, service: LocalService) -> None:
    """Every route says so, and the list of models says null."""
    service.heads = None
    for method, path in (("GET", ""), ("PUT", "/x"), ("GET", "/x"), ("DELETE", "/x"), ("POST", "/x/rollback")):
        assert problem(http.request(method, f"/v1/heads{path}")) == (404, "heads_off")
    assert problem(http.post("/v1/classify?head=x", content=photo_of("red", 0))) == (404, "heads_off")
    assert http.get("/v1/models").json()["heads"] is None


def test_photos_are_added_after_the_weights_changed(http: TestClient, service: LocalService, tmp_path: Path) -> None:
    """Where photos are kept, the head is fitted for the new weights first; then the new photos join it."""
    limit(service, keep_photos=True)
    teach(http)
    service.client.swap(publish_random(tmp_path, seed=5, version="other"))
    grown = http.post("/v1/heads/colors/examples", files={"red": photo_of("red", 97)}).json()
    assert (grown["photos"], grown["backbone"]["version"]) == (13, "other")


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
