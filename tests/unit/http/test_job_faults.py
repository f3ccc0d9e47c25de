"""Routes of /v1/jobs when the disk is full, the folder is away, a job is damaged or work cannot be started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serve_app.batch.job_store import JobStore
from serve_app.batch.plan import BatchJobConfig
from serve_app.batch.results import ResultsFolder
from serve_app.config import JobsConfig, KeysConfig, WeightsConfig
from serve_app.http.auth import ApiKeys, hash_key
from serve_app.inference.card import load_card
from tests.support.faults import WRONG_JSON, full_disk
from tests.support.local_service import LocalService
from tests.support.photos import make_photo
from tests.support.zips import ZIP_HEADER, make_zip


@pytest.fixture
def service(weights: WeightsConfig, tmp_path: Path) -> LocalService:
    local = LocalService(weights)
    local.configure(jobs=JobsConfig(folder=str(tmp_path / "jobs")))
    return local


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs")


def submit(http: TestClient, **headers: str) -> Any:
    return http.post("/v1/jobs", content=make_zip(), headers=ZIP_HEADER | headers)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("no Ray"), TimeoutError()])
def test_job_that_exists_is_accepted(
    http: TestClient, service: LocalService, store: JobStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Once the job is on disk the answer is 202 with its id, whatever fails afterwards."""

    async def fail() -> None:
        raise error

    def fail_state(self: JobStore, job: str, *_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(service, "start_jobs", fail)
    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "state", fail_state)
        answer = submit(http)
    job = answer.json()["id"]
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job}")
    assert answer.json() == http.get(f"/v1/jobs/{job}").json()
    cancelled = http.delete(f"/v1/jobs/{job}")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")


@pytest.mark.parametrize("function", ["rename", "replace", "fsync", "mkdir"])
@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "monday"}])
def test_full_disk_answers_503(
    http: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch, function: str, headers: dict[str, str]
) -> None:
    """Never 404 or 500, without a path of the server; nothing is left, and the same request succeeds later."""
    with monkeypatch.context() as patch:
        patch.setattr(os, function, full_disk)
        refused = submit(http, **headers)
    assert (refused.status_code, refused.json()["retryable"]) == (503, True)
    assert "No space left on device" in refused.json()["detail"]
    assert str(store.folder) not in refused.text
    assert not store.folder.exists() or list(store.folder.iterdir()) == []
    assert submit(http, **headers).status_code == 202


def test_folder_that_cannot_be_used_answers_503(http: TestClient, store: JobStore) -> None:
    """Every route names the setting and the reason; the other routes go on."""
    store.folder.write_text("a file")
    job = f"/{'0' * 32}"
    for method, path in (("POST", ""), ("GET", ""), ("GET", job), ("DELETE", job), ("GET", f"{job}/results")):
        content, headers = (make_zip(), ZIP_HEADER) if method == "POST" else (b"", {})
        answer = http.request(method, f"/v1/jobs{path}", content=content, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready"), method
        assert "(`jobs.folder`) cannot be used now: " in answer.json()["detail"]
        assert str(store.folder) not in answer.text
    assert http.post("/v1/classify", content=make_photo()).status_code == 200
    store.folder.unlink()
    assert submit(http).status_code == 202


@pytest.mark.parametrize("content", [*WRONG_JSON, b"{}"])
def test_damaged_job_beside_others(http: TestClient, store: JobStore, content: bytes) -> None:
    """It is listed as failed with a sentence; other jobs are listed, submitted and cancelled as before."""
    damaged, other = (submit(http).json()["id"] for _ in range(2))
    (store.folder / damaged / "job.json").write_bytes(content)
    listed = {job["id"]: job for job in http.get("/v1/jobs").json()["jobs"]}
    assert {job: state["status"] for job, state in listed.items()} == {damaged: "failed", other: "queued"}
    assert "submit it again" in listed[damaged]["error"]
    assert http.get(f"/v1/jobs/{damaged}").json() == listed[damaged]
    assert http.delete(f"/v1/jobs/{damaged}").json() == listed[damaged]
    results = http.get(f"/v1/jobs/{damaged}/results")
    assert (results.status_code, results.json()["code"]) == (409, "conflict")
    assert submit(http).status_code == 202
    assert http.delete(f"/v1/jobs/{other}").json()["status"] == "cancelled"


def test_damaged_job_takes_no_place_in_the_queue(http: TestClient, service: LocalService, store: JobStore) -> None:
    assert service.config.jobs
    service.configure(jobs=service.config.jobs.model_copy(update={"max_queued_jobs": 1}))
    job = submit(http).json()["id"]
    assert submit(http).status_code == 503
    (store.folder / job / "job.json").write_bytes(b"")
    assert submit(http).status_code == 202


def test_damaged_job_and_keys(http: TestClient, service: LocalService, store: JobStore) -> None:
    """A job whose caller is lost is in nobody's list; its id still says that it failed, but opens no results."""
    service.keys = ApiKeys(KeysConfig(hashes={"ann": hash_key("a"), "bob": hash_key("b")}))
    ann, bob = ({"x-api-key": key} for key in "ab")
    job = submit(http, **ann).json()["id"]
    (store.folder / job / "job.json").write_bytes(b"")
    for caller in (ann, bob):
        assert http.get("/v1/jobs", headers=caller).json()["jobs"] == []
        assert http.get(f"/v1/jobs/{job}", headers=caller).json()["status"] == "failed"
        assert http.get(f"/v1/jobs/{job}/results", headers=caller).status_code == 409


def test_lost_part_is_named_in_the_download(http: TestClient, store: JobStore) -> None:
    """The results of a job that succeeded have a row per image, also where the disk lost a part."""
    job = submit(http).json()["id"]
    config = BatchJobConfig(source="s", out=str(store.results_path(job)))
    results = ResultsFolder(config.out)
    results.begin(config, load_card(config.weights), ["a.jpg", "b.jpg"], 1)
    results.write_json("summary.json", {})
    rows = http.get(f"/v1/jobs/{job}/results?only=failed").json()
    assert [(row["path"], row["error"]["code"]) for row in rows] == [("a.jpg", "unreadable"), ("b.jpg", "unreadable")]
