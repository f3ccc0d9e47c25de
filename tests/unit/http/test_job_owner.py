"""X-Job-Owner: a client that serves several people keeps their jobs apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serve_app.batch.job_records import JobSummary, read_request
from serve_app.config import JobsConfig, KeysConfig, WeightsConfig
from serve_app.http.app import create_app
from serve_app.http.auth import ApiKeys, hash_key
from tests.support.local_service import LocalService

BUCKET = {"source": "s3://photos/in"}
ALICE, BOB = {"x-job-owner": "alice"}, {"x-job-owner": "bob"}


@pytest.fixture
def service(weights: WeightsConfig, tmp_path: Path) -> LocalService:
    local = LocalService(weights)
    local.configure(jobs=JobsConfig(folder=str(tmp_path), sources=(BUCKET["source"],)))
    return local


@pytest.fixture
def http(service: LocalService) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as client:
        yield client


def submit(http: TestClient, headers: dict[str, str]) -> str:
    response = http.post("/v1/jobs", json=BUCKET, headers=headers)
    assert response.status_code == 202
    return str(response.json()["id"])


def listed(http: TestClient, headers: dict[str, str]) -> set[str]:
    return {job["id"] for job in http.get("/v1/jobs", headers=headers).json()["jobs"]}


def test_an_owner_sees_only_his_jobs(http: TestClient) -> None:
    """Every route answers 404 for another owner's job; without the header all jobs of the key are there."""
    alices, bobs, nobodys = submit(http, ALICE), submit(http, BOB), submit(http, {})
    assert listed(http, ALICE) == {alices}
    assert listed(http, {}) == {alices, bobs, nobodys}
    for job in (bobs, nobodys):
        path = f"/v1/jobs/{job}"
        answers = [http.get(path, headers=ALICE), http.delete(path, headers=ALICE)]
        answers.append(http.get(f"{path}/results", headers=ALICE))
        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(404, "unknown_job")] * 3
        assert http.get(path).json()["status"] == "queued"
    assert http.delete(f"/v1/jobs/{alices}", headers=ALICE).json()["status"] == "cancelled"


def test_an_idempotency_key_belongs_to_its_owner(http: TestClient) -> None:
    """The same key of another owner starts another job; the same owner gets the same job."""
    key = {"idempotency-key": "monday"}
    jobs = [submit(http, {**owner, **key}) for owner in (ALICE, BOB, {}, ALICE)]
    assert jobs[0] == jobs[3]
    assert len(set(jobs)) == 3


def test_an_owner_is_within_an_api_key(http: TestClient, service: LocalService) -> None:
    """Another key sees none of the jobs, whatever owner it names."""
    service.keys = ApiKeys(KeysConfig(hashes={"page": hash_key("1"), "other": hash_key("2")}))
    page, other = {"x-api-key": "1"}, {"x-api-key": "2"}
    job = submit(http, {**page, **ALICE})
    assert listed(http, {**other, **ALICE}) == set()
    assert http.get(f"/v1/jobs/{job}", headers={**other, **ALICE}).status_code == 404
    assert listed(http, {**page, **ALICE}) == {job}


@pytest.mark.parametrize("owner", ["", "a b", "x" * 129, "a/b", "ä".encode().decode("latin-1")])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_malformed_owner_is_refused(owner: str, method: str, http: TestClient) -> None:
    """The error names the header; the request is not treated as one without it."""
    body = {"json": BUCKET} if method == "POST" else {}
    response = http.request(method, "/v1/jobs", headers={"x-job-owner": owner.encode("latin-1")}, **body)
    assert response.status_code == 422
    assert "X-Job-Owner" in response.json()["detail"]


def test_a_list_and_a_submission_read_each_job_a_few_times(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list reads a request once; a submission counts the open jobs before and after its body."""
    reads: list[Path] = []

    def count(folder: Path, *arguments: str | None) -> tuple[JobSummary | None, str]:
        reads.append(folder)
        return read_request(folder, *arguments)

    jobs = [submit(http, ALICE) for _ in range(5)]
    monkeypatch.setattr("serve_app.batch.job_store.read_request", count)
    assert listed(http, ALICE) == set(jobs)
    assert sorted(folder.name for folder in reads) == sorted(jobs)
    reads.clear()
    new = submit(http, ALICE)
    assert sorted(folder.name for folder in reads if folder.name != new) == sorted(2 * jobs)
