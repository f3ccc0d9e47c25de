"""Suggestions over HTTP: callers send photos to the owner of a public head, who approves or rejects them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from serve_app.config import KeysConfig, WeightsConfig
from serve_app.http.auth import ApiKeys, hash_key
from tests.support.local_service import LocalService
from tests.support.photos import make_photo
from tests.support.taught_photos import Photos, as_form, as_zip, photo_of, photos_of
from tests.support.teaching import COLORS, limit, problem, service_with_heads, teach
from tests.support.weights import publish_random

ALICE, BOB, CAROL = ({"x-api-key": name} for name in ("alice's", "bob's", "carol's"))
HEAD = "/v1/heads/colors"
PATH = f"{HEAD}/suggestions"
ONE = {"red": [photo_of("red", 50)]}
THREE = photos_of("red", count=2, first=60) | photos_of("green", count=1, first=60)


@pytest.fixture
def service(weights: WeightsConfig, tmp_path: Path) -> LocalService:
    service = service_with_heads(weights, tmp_path)
    hashes = {f"key-{key['x-api-key'][0]}": hash_key(key["x-api-key"]) for key in (ALICE, BOB, CAROL)}
    service.keys = ApiKeys(KeysConfig(hashes=hashes))
    return service


@pytest.fixture
def head(http: TestClient) -> dict[str, Any]:
    """Alice's head, which all may use."""
    taught: dict[str, Any] = teach(http, headers=ALICE, params={"public": True}).json()
    return taught


def suggest(http: TestClient, photos: Photos = ONE, key: dict[str, str] = BOB) -> httpx2.Response:
    """Suggest photos by form."""
    return http.post(PATH, files=as_form(photos), headers=key)


def waiting(http: TestClient) -> list[dict[str, Any]]:
    """Return what waits for Alice."""
    response = http.get(PATH, headers=ALICE)
    assert response.status_code == 200, response.text
    listed: list[dict[str, Any]] = response.json()["suggestions"]
    return listed


def approve(http: TestClient, *ids: str, **options: Any) -> httpx2.Response:
    """Approve suggestions as Alice."""
    headers = ALICE | options
    if len(ids) == 1:
        return http.post(f"{PATH}/{ids[0]}/approve", headers=headers)
    return http.post(f"{PATH}/approve", json={"ids": ids}, headers=headers)


def test_a_suggestion_becomes_an_example(http: TestClient, head: dict[str, Any]) -> None:
    """It changes nothing until the owner approves it; the owner sees who sent it, and what the head says."""
    sent = suggest(http)
    assert sent.status_code == 202, sent.text
    (id,) = sent.json()["ids"]
    assert sent.json()["warnings"] is None
    unchanged = http.get(HEAD, headers=ALICE).json()
    assert unchanged == head | {"suggestions": 1}
    assert http.get("/v1/heads", headers=ALICE).json()["heads"][0]["suggestions"] == 1
    (listed,) = waiting(http)
    assert (listed["id"], listed["class"], listed["caller"], listed["photo"]) == (id, "red", "key-b", None)
    assert listed["added"] < listed["expires"]
    answer = listed["answer"]
    assert (answer["predictions"][0]["label"], answer["none_of_these"]) == ("red", False)
    assert [each["class"] for each in answer["similar"]] == ["red"] * 3
    assert {each["id"] for each in answer["similar"]} <= {each["id"] for each in head["examples"]}
    approved = approve(http, id, **{"if-match": head["etag"]})
    assert approved.status_code == 200, approved.text
    assert (approved.json()["photos"], approved.json()["suggestions"]) == (13, 0)
    assert approved.headers["etag"] != head["etag"]
    assert approved.json()["examples"][-1]["id"] == id
    assert waiting(http) == []
    assert problem(approve(http, id)) == (404, "unknown_head")


def test_several_are_approved_with_one_fit(http: TestClient, head: dict[str, Any]) -> None:
    """All or none of them; what an outdated If-Match refuses goes on waiting."""
    ids = suggest(http, THREE).json()["ids"]
    assert problem(approve(http, *ids, **{"if-match": '"0-old"'})) == (412, "precondition_failed")
    assert problem(approve(http, *ids, "none")) == (404, "unknown_head")
    assert problem(http.post(f"{PATH}/approve", json={"ids": []}, headers=ALICE))[0] in (400, 422)
    assert len(waiting(http)) == 3
    approved = approve(http, *ids).json()
    assert (approved["photos"], len(approved["versions"]), approved["suggestions"]) == (15, 2, 0)


def test_an_approval_that_is_sent_twice_adds_one_example(http: TestClient, head: dict[str, Any]) -> None:
    """The second one comes too late, or changes nothing."""
    (id,) = suggest(http).json()["ids"]
    with ThreadPoolExecutor(2) as threads:
        statuses = sorted(threads.map(lambda _: approve(http, id).status_code, range(2)))
    assert statuses in ([200, 200], [200, 404])
    assert http.get(HEAD, headers=ALICE).json()["photos"] == 13
    assert waiting(http) == []


def test_the_owner_and_the_sender_may_reject(http: TestClient, service: LocalService, head: dict[str, Any]) -> None:
    """Nobody else; and nothing of it stays on disk."""
    limit(service, keep_photos=True)
    first, second, third = suggest(http, THREE).json()["ids"]
    assert problem(http.delete(f"{PATH}/{first}", headers=CAROL)) == (404, "unknown_head")
    assert http.delete(f"{PATH}/{first}", headers=BOB).status_code == 204
    assert http.delete(f"{PATH}/{second}", headers=ALICE).status_code == 204
    assert problem(http.delete(f"{PATH}/{second}", headers=ALICE)) == (404, "unknown_head")
    assert [each["id"] for each in waiting(http)] == [third]
    assert service.heads
    (left,) = (service.heads.store.folder / "suggestions").rglob("*.safetensors")
    assert third in left.name
    assert http.get(HEAD, headers=ALICE).json()["etag"] == head["etag"]


def test_only_classes_of_the_head(http: TestClient, head: dict[str, Any]) -> None:
    """Another class is refused, and similar ones are named; nothing of the request is stored."""
    refused = suggest(http, ONE | {"gren": ONE["red"]})
    assert problem(refused) == (422, "invalid_parameter")
    assert "similar classes: green" in refused.json()["detail"]
    (id,) = suggest(http).json()["ids"]
    photos = photos_of("blue", "green", count=3)
    http.put(HEAD, files=as_form(photos), headers=ALICE)
    assert problem(approve(http, id)) == (422, "invalid_parameter")  # the class has gone meanwhile
    assert [each["id"] for each in waiting(http)] == [id]


def test_duplicates_are_ignored(http: TestClient, head: dict[str, Any]) -> None:
    """Photos that wait or are taught already are named in `warnings`, also if they were taught since."""
    (id,) = suggest(http).json()["ids"]
    again = suggest(http, ONE | {"blue": photos_of("blue", count=1)["blue"]}, CAROL).json()
    assert (again["ids"], len(again["warnings"])) == ([], 2)
    assert "suggested already" in again["warnings"][0]
    http.post(f"{HEAD}/examples", files=as_form(ONE), headers=ALICE)
    approved = approve(http, id).json()
    assert (approved["photos"], approved["suggestions"], len(approved["warnings"])) == (13, 0, 1)


def test_bounds(http: TestClient, service: LocalService, head: dict[str, Any]) -> None:
    """Suggestions that wait, of all callers and of one, and their bytes; the owner's count too."""
    limit(service, max_suggestions=3, max_suggestions_per_key=2)
    assert problem(suggest(http, THREE)) == (409, "too_many_suggestions")
    assert suggest(http, {"red": THREE["red"]}).status_code == 202
    assert problem(suggest(http)) == (409, "too_many_suggestions")
    assert suggest(http, ONE, ALICE).status_code == 202
    assert problem(suggest(http, {"green": THREE["green"]}, CAROL)) == (409, "too_many_suggestions")
    limit(service, max_suggestions=200, max_suggestion_bytes=1000)
    assert problem(suggest(http, {"green": THREE["green"]}, CAROL)) == (409, "too_many_suggestions")
    assert len(waiting(http)) == 3
    limits = http.get("/v1/heads", headers=BOB).json()["limits"]
    assert (limits["max_suggestions"], limits["max_suggestions_per_key"]) == (200, 2)


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (as_zip({"red": [b"text"]}), "application/zip", (415, "unsupported_image")),
        (as_zip({"red": [make_photo()[:900]]}), "application/zip", (422, "invalid_image")),
        (b"", "application/zip", (400, "malformed")),
        (photo_of("red", 0), "image/jpeg", (415, "unsupported_image")),
    ],
)
def test_bodies_that_suggest_nothing(
    http: TestClient, head: dict[str, Any], body: bytes, kind: str, expected: tuple[int, str]
) -> None:
    """The errors are those of teaching."""
    assert problem(http.post(PATH, content=body, headers=BOB | {"content-type": kind})) == expected
    assert waiting(http) == []


def test_kept_photos(http: TestClient, service: LocalService, head: dict[str, Any]) -> None:
    """With `keep_photos` the owner sees them, also after the approval; by default the disk has none."""
    suggest(http)
    assert waiting(http)[0]["photo"] is None
    limit(service, keep_photos=True)
    suggest(http, THREE)
    kept, *_ = (each for each in waiting(http) if each["photo"])
    assert http.get(kept["photo"], headers=ALICE).content in THREE[kept["class"]]
    small = http.get(kept["photo"], params={"thumbnail": True}, headers=ALICE)
    assert (small.headers["content-type"], small.content[:2]) == ("image/jpeg", b"\xff\xd8")
    assert problem(http.get(kept["photo"], headers=BOB)) == (404, "unknown_head")  # not even to the sender
    example = approve(http, kept["id"]).json()["examples"][-1]
    assert http.get(example["photo"], headers=ALICE).content in THREE[kept["class"]]
    assert problem(http.get(kept["photo"], headers=ALICE)) == (404, "unknown_head")


def test_suggestions_of_other_weights(
    http: TestClient, service: LocalService, head: dict[str, Any], tmp_path: Path
) -> None:
    """Without the photo they cannot be approved, and the error says what to do; with it they are embedded again."""
    (lost,) = suggest(http).json()["ids"]
    service.client.swap(publish_random(tmp_path, seed=5, version="other"))
    teach(http, headers=ALICE)
    assert waiting(http)[0]["answer"] is None
    refused = approve(http, lost)
    assert problem(refused) == (409, "head_backbone_changed")
    assert f"{lost} was not kept: reject it with DELETE" in refused.json()["detail"]
    limit(service, keep_photos=True)
    (kept,) = suggest(http, {"green": THREE["green"]}).json()["ids"]
    service.client.swap(publish_random(tmp_path, seed=6, version="third"))
    teach(http, headers=ALICE)
    approved = approve(http, kept).json()
    assert (approved["photos"], approved["backbone"]["version"]) == (13, "third")
    assert [each["id"] for each in waiting(http)] == [lost]


def test_a_deleted_head_takes_its_suggestions_along(
    http: TestClient, service: LocalService, head: dict[str, Any]
) -> None:
    """A new head of that name has none, and the disk holds none."""
    suggest(http)
    http.delete(HEAD, headers=ALICE)
    assert problem(suggest(http)) == (404, "unknown_head")
    assert service.heads
    assert not [path for path in service.heads.store.folder.rglob("*") if path.is_file() and path.name != ".lock"]
    assert teach(http, headers=ALICE).json()["suggestions"] == 0


def test_without_keys_everybody_owns_the_head(http: TestClient, service: LocalService) -> None:
    """The owner's own suggestions are fine too."""
    service.keys = ApiKeys(KeysConfig())
    teach(http)
    (id,) = http.post(PATH, files=as_form(ONE)).json()["ids"]
    assert http.get(PATH).json()["suggestions"][0]["caller"] is None
    assert http.post(f"{PATH}/{id}/approve").json()["labels"] == list(COLORS)
