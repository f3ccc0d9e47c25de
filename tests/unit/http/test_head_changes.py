"""Changes of a head over HTTP: of its photos and versions, by two writers, and after its weights were replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.config import WeightsConfig
from tests.support.local_service import LocalService
from tests.support.photos import make_photo
from tests.support.taught_photos import as_form, photo_of, photos_of
from tests.support.teaching import COLORS, PHOTOS, best, limit, problem, service_with_heads, teach
from tests.support.weights import publish_random


@pytest.fixture
def service(weights: WeightsConfig, tmp_path: Path) -> LocalService:
    return service_with_heads(weights, tmp_path)


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


def test_photos_are_added_after_the_weights_changed(http: TestClient, service: LocalService, tmp_path: Path) -> None:
    """Where photos are kept, the head is fitted for the new weights first; then the new photos join it."""
    limit(service, keep_photos=True)
    teach(http)
    service.client.swap(publish_random(tmp_path, seed=5, version="other"))
    grown = http.post("/v1/heads/colors/examples", files={"red": photo_of("red", 97)}).json()
    assert (grown["photos"], grown["backbone"]["version"]) == (13, "other")
