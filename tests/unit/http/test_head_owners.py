"""Heads of other API keys: nothing reads, uses or changes them, and nothing tells that they exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.config import JobsConfig, KeysConfig, LimitsConfig, WeightsConfig
from serve_app.heads_config import HeadsConfig
from serve_app.http.auth import ApiKeys, hash_key
from tests.support.head_accesses import accesses
from tests.support.local_service import LocalService
from tests.support.taught_photos import as_form, photo_of, photos_of

ALICE, BOB = {"x-api-key": "alice's"}, {"x-api-key": "bob's"}
PHOTOS = as_form(photos_of("red", "green", count=3))


@pytest.fixture
def service(weights: WeightsConfig, tmp_path: Path) -> LocalService:
    service = LocalService(weights, LimitsConfig(deadline_s=600))  # the first fit imports scikit-learn
    hashes = {name: hash_key(key["x-api-key"]) for name, key in (("alice", ALICE), ("bob", BOB))}
    service.keys = ApiKeys(KeysConfig(hashes=hashes))
    service.configure(jobs=JobsConfig(folder=str(tmp_path / "jobs")))
    service.keep_heads(HeadsConfig(folder=str(tmp_path / "heads"), keep_photos=True))
    return service


def suggested(http: TestClient, name: str) -> str:
    """Suggest a photo to Alice as Alice; return its id."""
    response = http.post(f"/v1/heads/{name}/suggestions", files={"red": photo_of("red", 50)}, headers=ALICE)
    (id,) = response.json()["ids"]
    return str(id)


def test_no_access_to_heads_of_other_keys(http: TestClient) -> None:
    """Of 51 requests with another key none gets through, and each answers as for a head that does not exist."""
    taught = http.put("/v1/heads/secret", files=PHOTOS, headers=ALICE).json()
    ids = taught["version"], taught["examples"][0]["id"], suggested(http, "secret"), taught["etag"]
    head = http.get("/v1/heads/secret", headers=ALICE).json()
    existing, missing = accesses("secret", *ids), accesses("nobody", *ids)
    assert len(existing) == 51
    for there, not_there in zip(existing, missing, strict=True):
        answers = []
        for access in (there, not_there):
            options = access.options | {"headers": {**access.options.get("headers", {}), **BOB}}
            answers.append(http.request(access.method, access.path, **options))
        refused, unknown = answers
        assert refused.status_code in (404, 412), there[:2]  # 412: If-Match on PUT
        texts = [answer.text.replace("secret", "nobody").partition('"request_id"')[0] for answer in answers]
        assert (refused.status_code, texts[0]) == (unknown.status_code, texts[1]), there[:2]
    for listing in ("/v1/heads", "/v1/models"):
        assert http.get(listing, headers=BOB).json()["heads"] == []
    assert http.get("/v1/heads/secret", headers=ALICE).json() == head


def test_two_keys_have_heads_of_the_same_name(http: TestClient) -> None:
    """Each key uses its own, and deleting one leaves the other."""
    http.put("/v1/heads/colors", files=PHOTOS, headers=ALICE)
    response = http.put("/v1/heads/colors", files=as_form(photos_of("blue", "gray", count=3)), headers=BOB)
    assert (response.status_code, response.json()["labels"]) == (201, ["blue", "gray"])
    assert http.delete("/v1/heads/colors", headers=BOB).status_code == 204
    assert http.get("/v1/heads/colors", headers=ALICE).json()["labels"] == ["green", "red"]


def test_a_public_head_can_be_used_and_not_changed(http: TestClient) -> None:
    """Another key classifies with it and sees neither its photos nor their ids; its name is taken for public heads."""
    head = http.put("/v1/heads/colors?public=true", files=PHOTOS, headers=ALICE).json()
    seen = http.get("/v1/heads/colors", headers=BOB).json()
    assert (seen["mine"], seen["public"], seen["examples"], seen["versions"]) == (False, True, [], [])
    assert seen["suggestions"] is None
    answer = http.post("/v1/classify?head=colors&similar=2", content=photo_of("red", 80), headers=BOB).json()
    said = answer["results"][0]["heads"]["colors"]
    assert said["predictions"][0]["label"] == "red"
    assert [set(each) for each in said["similar"]] == [{"class", "distance"}] * 2
    assert http.post("/v2/models/colors/infer", headers=BOB).status_code == 400
    ids = head["version"], head["examples"][0]["id"], suggested(http, "colors"), head["etag"]
    allowed = [("GET", "/v1/heads/colors"), ("POST", "/v1/heads/colors/suggestions")]
    for access in accesses("colors", *ids):
        options = access.options | {"headers": {**access.options.get("headers", {}), **BOB}}
        if access.path.startswith("/v1/heads") and access[:2] not in allowed:
            assert http.request(access.method, access.path, **options).status_code in (404, 412), access[:2]
    assert http.get("/v1/heads/colors", headers=ALICE).json()["suggestions"] == 1
    assert http.put("/v1/heads/colors?public=true", files=PHOTOS, headers=BOB).json()["code"] == "head_name_taken"
    assert http.patch("/v1/heads/colors", json={"public": False}, headers=ALICE).json()["public"] is False
    assert http.get("/v1/heads/colors", headers=BOB).status_code == 404
