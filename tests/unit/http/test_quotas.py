"""What a caller may send and what it has used: images, bytes, jobs, malformed requests."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.batch.job_store import JobStore
from serve_app.config import AdmissionConfig, FeedbackConfig, JobsConfig, KeysConfig, WeightsConfig
from serve_app.errors import OverloadedError, RateLimitedError
from serve_app.http.accounts import Accounts
from serve_app.http.auth import ApiKeys, hash_key
from serve_app.http.jobs.quota import UploadSlots
from serve_app.observability.feedback_store import Feedback
from tests.support.clock import FakeClock
from tests.support.local_service import LocalService
from tests.support.photos import make_photo
from tests.support.zips import ZIP_HEADER, entry, make_zip

PHOTO = make_photo()
ALICE, BOB = {"x-api-key": "a"}, {"x-api-key": "b"}
HASHES = {"alice": hash_key("a"), "bob": hash_key("b")}
SLOW = 0.0001  # tokens per second: nothing refills during a test
SOURCE = {"source": "s3://photos/in"}


@pytest.fixture
def service(weights: WeightsConfig, tmp_path: Path) -> LocalService:
    """A service with two callers, each with 20 images and 1 MB."""
    service = LocalService(weights)
    service.keys = ApiKeys(
        KeysConfig(hashes=HASHES, images_per_s=SLOW, burst=20, bytes_per_s=SLOW, burst_bytes=1_000_000)
    )
    service.configure(
        jobs=JobsConfig(
            folder=str(tmp_path / "jobs"), sources=("s3://photos",), max_queued_jobs=2, max_total_queued_jobs=3
        )
    )
    service.feedback = Feedback(FeedbackConfig(folder=str(tmp_path / "votes"), keep_images=True))
    return service


def used(http: TestClient, kind: str = "images", key: dict[str, str] = ALICE) -> int:
    """Return what a caller has used of its limit."""
    quota: dict[str, int] = http.get("/v1/usage", headers=key).json()[kind]
    return quota["used"]


def test_usage_says_what_a_key_has_used_and_may_use(http: TestClient) -> None:
    """Images and bytes of this caller only; asking is free."""
    http.post("/v1/classify", headers=ALICE, files=[("images", ("a.jpg", PHOTO))] * 3)
    size = used(http, "bytes")
    assert 3 * len(PHOTO) < size < 3 * len(PHOTO) + 1000
    http.post("/v1/jobs", headers=ALICE, json=SOURCE)
    body = http.get("/v1/usage", headers=ALICE).json()
    assert body["caller"] == "alice"
    assert body["images"] == {"used": 4, "limit": 20, "remaining": 16, "total": 4}
    assert body["bytes"]["limit"] == body["bytes"]["used"] + body["bytes"]["remaining"] == 1_000_000
    assert body["jobs"] == {"used": 1, "limit": 2, "remaining": 1, "total": None}
    other = http.get("/v1/usage", headers=BOB).json()
    assert (other["caller"], other["images"]["used"], other["jobs"]["used"]) == ("bob", 0, 0)
    assert http.get("/v1/usage").status_code == 401


def test_usage_without_keys_and_jobs(http: TestClient, service: LocalService) -> None:
    """Everyone is one caller without limits."""
    service.keys = ApiKeys(KeysConfig(images_per_s=1, burst=1))
    service.configure(jobs=None)
    for _ in range(3):
        assert http.post("/v1/classify", content=PHOTO).status_code == 200
    body = http.get("/v1/usage").json()
    assert (body["caller"], body["jobs"]) == (None, None)
    assert body["images"] == {"used": 3, "limit": None, "remaining": None, "total": 3}


def test_usage_is_described(http: TestClient) -> None:
    """OpenAPI has the route and its fields."""
    described = http.get("/openapi.json").json()
    schema = described["paths"]["/v1/usage"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("/Usage")
    assert set(described["components"]["schemas"]["Quota"]["properties"]) == {"used", "limit", "remaining", "total"}


MALFORMED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/classify", {"content": b"{", "headers": {"content-type": "application/json"}}),
    ("/v1/classify", {"content": b"", "headers": {"content-type": "image/jpeg"}}),
    ("/v1/classify?top_k=0", {"content": PHOTO}),
    ("/v1/classify", {"content": b"x", "headers": {"content-type": "text/plain"}}),
    ("/predict", {"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=y"}}),
    ("/v2/models/resnet18/infer", {"content": b"{}"}),
    ("/v2/models/other/infer", {"content": b"{}"}),
    ("/v1/feedback", {"json": {}}),
    ("/v1/feedback", {"json": {"request_id": "a", "correct": True}}),
    ("/v1/jobs", {"content": b"no zip", "headers": ZIP_HEADER}),
    ("/v1/jobs", {"json": {"source": "s3://other"}}),
    ("/none", {"content": b"x"}),
    ("/v1/classify", {"content": b"not an image"}),
)


def test_a_request_without_images_costs_one(http: TestClient) -> None:
    """Malformed requests, votes and unknown paths cost as much as one image."""
    for number, (path, options) in enumerate(MALFORMED, 1):
        http.post(path, **{**options, "headers": {**options.get("headers", {}), **ALICE}})
        assert used(http) == number, (path, options)


def test_malformed_requests_are_limited(http: TestClient) -> None:
    """They end in 429, as images do, on every path that takes a body; reads stay possible."""
    for _ in range(20):
        assert http.post("/v1/classify", content=b"{", headers=ALICE).status_code == 400
    for path in ("/v1/classify", "/predict", "/v1/feedback", "/v1/jobs", "/v2/models/resnet18/infer", "/none"):
        refused = http.post(path, content=b"{", headers=ALICE)
        assert refused.status_code == 429, path
        assert int(refused.headers["retry-after"]) > 1
    assert http.put("/none", content=b"{", headers=ALICE).status_code == 429
    assert http.get("/v1/status", headers=ALICE).status_code == 200
    assert http.post("/v1/classify", content=PHOTO, headers=BOB).status_code == 200


def test_a_refusal_for_overload_costs_nothing(http: TestClient, service: LocalService) -> None:
    """The caller did nothing wrong."""
    service.configure(admission=AdmissionConfig.model_construct(max_inflight_images=0))
    assert http.post("/v1/classify", content=PHOTO, headers=ALICE).status_code == 503
    assert used(http) == 0


def test_jobs_cost_one_token_per_image(http: TestClient) -> None:
    """A zip costs its files, once per Idempotency-Key; a larger one delays the next request."""
    archive = make_zip(entry("b/"), entry("b/c.jpg"))
    key = ZIP_HEADER | ALICE | {"idempotency-key": "monday"}
    assert http.post("/v1/jobs", content=archive, headers=key).status_code == 202
    assert (used(http), used(http, "bytes")) == (3, len(archive))
    assert http.post("/v1/jobs", content=archive, headers=key).status_code == 202
    assert used(http) == 4
    large = make_zip(*(entry(f"{number}.jpg") for number in range(98)))
    assert http.post("/v1/jobs", content=large, headers=ZIP_HEADER | ALICE).status_code == 202
    assert http.get("/v1/usage", headers=ALICE).json()["images"] == {
        "used": 20,
        "limit": 20,
        "remaining": 0,
        "total": 104,
    }
    assert http.post("/v1/classify", content=PHOTO, headers=ALICE).status_code == 429


def test_feedback_images_cost_one(http: TestClient) -> None:
    """An image of a vote is counted as an image, not twice."""
    vote = {"request_id": "r", "label": "cow"}
    assert http.post("/v1/feedback", data=vote, files={"image": ("x", PHOTO)}, headers=ALICE).status_code == 204
    assert used(http) == 1


def test_bytes_are_limited(http: TestClient) -> None:
    """A caller that has sent its bytes gets 429 that names the limit, whatever the images were."""
    assert http.post("/v1/classify", content=bytes(1_000_000), headers=ALICE).status_code == 415
    refused = http.post("/v1/classify", content=PHOTO, headers=ALICE)
    assert (refused.status_code, "bytes/s" in refused.json()["detail"]) == (429, True)


def test_open_jobs_are_limited_per_caller_and_in_total(http: TestClient, tmp_path: Path) -> None:
    """One caller cannot fill the queue of the others."""
    first = http.post("/v1/jobs", json=SOURCE, headers=ALICE).json()["id"]
    assert http.post("/v1/jobs", json=SOURCE, headers=ALICE).status_code == 202
    refused = http.post("/v1/jobs", json=SOURCE, headers=ALICE)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    assert "`jobs.max_queued_jobs`" in refused.json()["detail"]
    assert http.post("/v1/jobs", json=SOURCE, headers=BOB).status_code == 202
    full = http.post("/v1/jobs", json=SOURCE, headers=BOB)
    assert (full.status_code, "`jobs.max_total_queued_jobs`" in full.json()["detail"]) == (503, True)
    assert http.delete(f"/v1/jobs/{first}", headers=ALICE).status_code == 200
    assert http.post("/v1/jobs", json=SOURCE, headers=BOB).status_code == 202
    assert len(JobStore(tmp_path / "jobs").open_jobs()) == 3


def test_one_key_does_not_take_all_uploads() -> None:
    """Half of the slots of a replica are left to others; an upload that has ended frees its slot."""
    slots = UploadSlots()
    with ExitStack() as uploads:
        for caller in ("alice", "alice", "bob"):
            uploads.enter_context(slots.take(caller))
        with pytest.raises(RateLimitedError, match="2 uploads of this API key"), slots.take("alice"):
            pass
        with slots.take("bob"), pytest.raises(OverloadedError, match="4 uploads"), slots.take("carol"):
            pass
    with ExitStack() as uploads:
        for _ in range(4):
            uploads.enter_context(slots.take(None))
        with pytest.raises(OverloadedError, match="4 uploads"), slots.take(None):
            pass


def test_a_change_of_the_settings_refills_nothing(http: TestClient, service: LocalService) -> None:
    """New keys, rates and other settings leave what was taken."""
    for _ in range(20):
        http.post("/v1/classify", content=b"x", headers=ALICE)
    service.keys = ApiKeys(service.keys.config.model_copy(update={"hashes": HASHES | {"carol": hash_key("c")}}))
    assert http.post("/v1/classify", content=PHOTO, headers=ALICE).status_code == 429
    service.keys = ApiKeys(service.keys.config.model_copy(update={"images_per_s": 2 * SLOW}))
    service.configure(top_k=3)
    assert http.post("/v1/classify", content=PHOTO, headers=ALICE).status_code == 429
    service.keys = ApiKeys(service.keys.config.model_copy(update={"burst": 25}))
    assert http.get("/v1/usage", headers=ALICE).json()["images"]["remaining"] == 5


def test_an_account_follows_its_limits() -> None:
    """A lower limit counts what was taken, a removed one stops counting against it, tokens refill at the rate."""
    clock, config = FakeClock(), KeysConfig(images_per_s=2, burst=10)
    accounts = Accounts(lambda: config, clock)
    accounts.of("alice").images.take(8)
    config = KeysConfig(images_per_s=2, burst=4)
    with pytest.raises(RateLimitedError, match=r"may send 2 images/s; wait 2\.5 s"):
        accounts.of("alice").check()
    clock.advance(3)
    accounts.of("alice").check()
    assert accounts.of("alice").images.quota().remaining == 2
    config = KeysConfig()
    quota = accounts.of("alice").images.quota()
    assert (quota.used, quota.limit) == (8, None)
