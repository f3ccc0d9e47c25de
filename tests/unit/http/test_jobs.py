"""Routes of /v1/jobs without Ray: submit, list, cancel, download; every caller sees only their own jobs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from serve_app.batch.job_store import JobStore
from serve_app.batch.plan import BatchJobConfig
from serve_app.batch.results import ResultsFolder, schema
from serve_app.batch.supervisor import predict_command
from serve_app.config import JobsConfig, KeysConfig, WeightsConfig
from serve_app.errors import ForbiddenSourceError
from serve_app.http.app import create_app
from serve_app.http.auth import ApiKeys, hash_key
from serve_app.http.jobs.inputs import resolve_source
from serve_app.inference.card import load_card
from tests.support.local_service import LocalService
from tests.support.raw_zips import RawEntry, raw_zip
from tests.support.zips import ZIP_HEADER, entry, make_zip

BUCKET = {"source": "s3://photos/in"}


@pytest.fixture
def service(weights: WeightsConfig, tmp_path: Path) -> LocalService:
    """A service that takes jobs, three at a time, from one bucket prefix."""
    local = LocalService(weights)
    local.configure(jobs=JobsConfig(folder=str(tmp_path / "jobs"), sources=(BUCKET["source"],), max_queued_jobs=3))
    return local


@pytest.fixture
def http(service: LocalService) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as client:
        yield client


@pytest.fixture
def store(service: LocalService) -> JobStore:
    assert service.config.jobs
    return JobStore(Path(service.config.jobs.folder))


def test_disabled_jobs_answer_404_and_name_the_setting(http: TestClient, service: LocalService) -> None:
    """Without `jobs` in the settings every route answers `jobs_off`."""
    service.configure(jobs=None)
    for response in (http.post("/v1/jobs", content=make_zip(), headers=ZIP_HEADER), http.get("/v1/jobs")):
        assert (response.status_code, response.json()["code"]) == (404, "jobs_off")
        assert "jobs: {folder: …}" in response.json()["detail"]


def test_zip_becomes_a_queued_job(http: TestClient, store: JobStore) -> None:
    """A raw body and a form both give 202 and a Location, and the zip is stored byte for byte."""
    body = make_zip()
    response = http.post("/v1/jobs?top_k=3", content=body, headers=ZIP_HEADER)
    job = response.json()["id"]
    assert (response.status_code, response.headers["location"]) == (202, f"/v1/jobs/{job}")
    form = http.post("/v1/jobs", files={"file": ("photos.zip", body, "application/zip")})
    assert (form.status_code, form.json()["source"]) == (202, "photos.zip")
    state = http.get(f"/v1/jobs/{job}").json()
    assert (state["status"], state["top_k"]) == ("queued", 3)
    assert state["progress"] == {"total": None, "done": 0, "failed": 0}
    early = http.get(f"/v1/jobs/{job}/results")
    assert (early.status_code, early.json()["code"]) == (409, "conflict")
    assert [state["id"] for state in http.get("/v1/jobs").json()["jobs"]] == [form.json()["id"], job]
    assert store.open_jobs() == [job, form.json()["id"]]
    for open_job in store.open_jobs():
        assert Path(store.input_path(open_job)).read_bytes() == body


@pytest.mark.parametrize("embed", [True, False])
def test_embeddings_are_an_option(http: TestClient, store: JobStore, weights: WeightsConfig, embed: bool) -> None:
    """The job's command gets the option, its state shows it, and its results have the column."""
    url = "/v1/jobs?embed=true" if embed else "/v1/jobs"
    state = http.post(url, content=make_zip(), headers=ZIP_HEADER).json()
    assert state["embed"] == embed
    assert ("--embed" in predict_command(store, state["id"], None, None)) == embed
    results = ResultsFolder(str(store.results_path(state["id"])))
    job = BatchJobConfig(source="s", out="o", weights=weights, embed=embed)
    results.begin(job, load_card(weights), ["a"], 1)
    classes = {"labels": ["ant"], "scores": [1.0], "class_ids": [0], "margin": 1.0, "entropy": 0.0}
    row = {"path": "a", "error": None, "detail": None, "version": "v", "embedding": np.ones(512, np.float32)}
    results.write_part(0, [row | classes], schema(embed))
    results.write_json("summary.json", {})
    (shown,) = http.get(f"/v1/jobs/{state['id']}/results").json()
    assert shown.get("embedding") == ([1.0] * 512 if embed else None)
    downloaded = http.get(f"/v1/jobs/{state['id']}/results?format=parquet").content
    assert ("embedding" in pq.read_table(io.BytesIO(downloaded)).column_names) == embed


def test_results_in_four_formats(http: TestClient, store: JobStore, weights: WeightsConfig) -> None:
    """JSON, JSON lines, CSV and Parquet hold the same rows, in the order of the parts; `only` selects rows."""
    job = http.post("/v1/jobs?top_k=2", content=make_zip(), headers=ZIP_HEADER).json()["id"]
    results = ResultsFolder(str(store.results_path(job)))
    results.begin(BatchJobConfig(source="s", out="o", weights=weights), load_card(weights), ["a", "b", "c"], 2)
    classes = {"labels": ["ant", "bee"], "scores": [0.75, 0.25], "class_ids": [0, 1], "margin": 0.5, "entropy": 0.5}
    for shard, names in enumerate((["a", "b"], ["c"])):
        rows = [{"path": name, "error": None, "detail": None, "version": "v", **classes} for name in names]
        if shard:
            rows[0] |= dict.fromkeys(classes) | {"error": "invalid_image", "detail": "truncated, or so"}
        results.write_part(shard, rows)
    results.write_json("summary.json", {})

    def download(format: str, only: str = "all") -> Any:
        response = http.get(f"/v1/jobs/{job}/results", params={"format": format, "only": only})
        assert response.status_code == 200
        assert f'{job}.{format}"' in response.headers["content-disposition"]
        return response

    rows = download("json").json()
    assert [row["path"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["predictions"][1] == {"label": "bee", "score": 0.25, "class_id": 1}
    assert rows[2]["error"] == {"code": "invalid_image", "detail": "truncated, or so"}
    assert rows == [json.loads(line) for line in download("jsonl").text.splitlines()]
    lines = list(csv.DictReader(io.StringIO(download("csv").text)))
    assert (lines[1]["label_2"], lines[1]["score_2"], lines[2]["label_1"]) == ("bee", "0.25", "")
    assert lines[2]["detail"] == "truncated, or so"
    table = pq.read_table(io.BytesIO(download("parquet").content))
    assert table["path"].to_pylist() == ["a", "b", "c"]
    assert [row["path"] for row in download("json", "failed").json()] == ["c"]
    assert len(download("csv", "ok").text.splitlines()) == 3
    assert http.get(f"/v1/jobs/{job}/results", params={"format": "xml"}).status_code == 422


@pytest.mark.parametrize(
    ("request_options", "status", "sentence"),
    [
        pytest.param(
            {"content": b"x", "headers": {"content-type": "image/jpeg"}}, 415, "send application/zip", id="type"
        ),
        pytest.param(
            {
                "content": b' {"source": "s3://photos/in"}',
                "headers": {"content-type": "application/x-www-form-urlencoded"},
            },
            400,
            "send it with Content-Type: application/json",
            id="JSON with curl's type",
        ),
        pytest.param({"json": {"source": "file:///etc"}}, 403, "not below a prefix", id="local address"),
        pytest.param({"json": {"sauce": "s3://photos/in"}}, 400, "source: Field required", id="misspelled source"),
        pytest.param({"json": {"source": "s3://photos/inside"}}, 403, "not below a prefix", id="forbidden source"),
        pytest.param({"json": BUCKET, "params": {"top_k": 0}}, 422, "top_k", id="top_k"),
        pytest.param(
            {"json": BUCKET, "headers": {"idempotency-key": "x" * 201}}, 422, "Idempotency-Key", id="long key"
        ),
    ],
)
def test_wrong_request_is_refused(
    http: TestClient, request_options: dict[str, Any], status: int, sentence: str
) -> None:
    """A wrong type, source or parameter gets its own status and a sentence that names it."""
    response = http.post("/v1/jobs", **request_options)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert sentence in response.json()["detail"]


def test_source_must_be_below_an_allowed_prefix(tmp_path: Path) -> None:
    """The prefix and locations below it are allowed; ways out, patterns, links and connection settings are not."""
    top = tmp_path / "in"
    (top / "sub").mkdir(parents=True)
    (top / "out").symlink_to(tmp_path)
    prefixes = ("s3://photos/in/", str(top))
    for allowed in ("s3://photos/in", "s3://photos/in/2026", str(top), f"{top}/sub"):
        assert resolve_source(allowed, prefixes) == allowed
    for forbidden in (
        *("s3://photos/input", "s3://photos", "s3://photos/in/../x", "s3://photos/in?endpoint_override=evil"),
        *("s3://k" + ":s@photos/in", f"{top}/../x", f"{top}/*", f"{top}/out", "/etc", "in", "s3://photos/in/%2e%2e/x"),
    ):
        with pytest.raises(ForbiddenSourceError, match="not below a prefix"):
            resolve_source(forbidden, prefixes)


def test_idempotency_key_returns_the_same_job(http: TestClient, store: JobStore) -> None:
    """Same key and body: the same job. Another body or top_k: 409. No key: another job."""
    key = ZIP_HEADER | {"idempotency-key": "monday"}
    first, second = (http.post("/v1/jobs", content=make_zip(), headers=key) for _ in range(2))
    assert (second.status_code, second.json()["id"]) == (202, first.json()["id"])
    other_body = http.post("/v1/jobs", content=make_zip(entry("b.jpg")), headers=key)
    assert (other_body.status_code, other_body.json()["code"]) == (409, "conflict")
    assert http.post("/v1/jobs?top_k=2", content=make_zip(), headers=key).status_code == 409
    assert http.post("/v1/jobs?embed=true", content=make_zip(), headers=key).status_code == 409
    assert http.post("/v1/jobs", content=make_zip(), headers=ZIP_HEADER).json()["id"] != first.json()["id"]
    assert len(list(store.folder.iterdir())) == 2


def test_full_queue_refuses_until_a_job_is_cancelled(http: TestClient) -> None:
    """A full queue answers 503 with Retry-After; a cancelled job frees its place and stays cancelled."""
    jobs = [http.post("/v1/jobs", json=BUCKET).json()["id"] for _ in range(3)]
    refused = http.post("/v1/jobs", json=BUCKET)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "60")
    assert "jobs.max_queued_jobs" in refused.json()["detail"]
    for _ in range(2):
        assert http.delete(f"/v1/jobs/{jobs[0]}").json()["status"] == "cancelled"
    assert http.post("/v1/jobs", json=BUCKET).status_code == 202
    assert http.get(f"/v1/jobs/{jobs[0]}/results").json() == []


def test_unknown_job_answers_404(http: TestClient) -> None:
    """An id without a job, and an id that is a path, are unknown to every route."""
    for path in (f"/v1/jobs/{'0' * 32}", "/v1/jobs/..%2f..%2fetc", f"/v1/jobs/{'0' * 32}/results"):
        assert http.get(path).status_code == 404
    assert http.delete(f"/v1/jobs/{'0' * 32}").json()["code"] == "unknown_job"


def test_callers_see_only_their_own_jobs(http: TestClient, service: LocalService) -> None:
    """With API keys, another caller's job is unknown, and idempotency keys of two callers do not collide."""
    service.keys = ApiKeys(KeysConfig(hashes={"ann": hash_key("a"), "bob": hash_key("b")}))
    ann, bob = ({"x-api-key": key, "idempotency-key": "k"} for key in "ab")
    assert http.post("/v1/jobs", content=make_zip(), headers=ZIP_HEADER).status_code == 401
    anns = http.post("/v1/jobs", content=make_zip(), headers=ZIP_HEADER | ann).json()["id"]
    bobs = http.post("/v1/jobs", content=make_zip(entry("c.jpg")), headers=ZIP_HEADER | bob)
    assert bobs.status_code == 202
    assert [job["id"] for job in http.get("/v1/jobs", headers=ann).json()["jobs"]] == [anns]
    for method in ("GET", "DELETE"):
        assert http.request(method, f"/v1/jobs/{anns}", headers=bob).json()["code"] == "unknown_job"


@pytest.fixture
def allowed(service: LocalService, tmp_path: Path) -> Path:
    """The allowed folder of a service, named by a link."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "photos").symlink_to(tmp_path / "disk")
    settings = JobsConfig(folder=str(tmp_path / "jobs"), sources=(str(tmp_path / "photos"),), max_zip_bytes=10_000)
    service.configure(jobs=settings)
    return tmp_path / "photos"


def test_a_named_zip_is_checked_like_an_uploaded_one(http: TestClient, allowed: Path) -> None:
    """It gets 202, or the status of the upload; the messages hold no path."""
    (allowed / "good.zip").write_bytes(make_zip())
    (allowed / "large.zip").write_bytes(bytes(10_001))
    (allowed / "text.zip").write_bytes(b"text")
    (allowed / "up.zip").write_bytes(make_zip(entry("../x.jpg")))
    (allowed / "hidden.zip").write_bytes(raw_zip([RawEntry(b".DS_Store")]))
    (allowed.parent / "outside.zip").write_bytes(make_zip())
    (allowed / "link.zip").symlink_to(allowed.parent / "outside.zip")
    statuses = {}
    for name in ("good", "large", "text", "up", "hidden", "link"):
        response = http.post("/v1/jobs", json={"source": f"{allowed}/{name}.zip"})
        statuses[name] = response.status_code
        assert str(allowed.resolve()) not in response.text
    assert statuses == {"good": 202, "large": 413, "text": 400, "up": 422, "hidden": 400, "link": 403}


@pytest.mark.parametrize("name", ["loop", "x" * 300, "gone"])
def test_odd_names_of_sources_get_an_answer(http: TestClient, allowed: Path, name: str) -> None:
    """A link to itself, a name too long for the disk and a missing folder end no request with a 500."""
    (allowed / "loop").symlink_to(allowed / "loop")
    assert http.post("/v1/jobs", json={"source": f"{allowed}/{name}"}).status_code in (202, 403)


def test_errors_of_jobs_show_no_path_of_the_server(http: TestClient, store: JobStore, allowed: Path) -> None:
    """The source stands as the client named it; every route hides other paths."""
    source = f"{allowed}/monday"
    (allowed / "monday").mkdir()
    response = http.post("/v1/jobs", json={"source": source})
    job = response.json()["id"]
    assert response.json()["source"] == source
    location = store.input_path(job)
    assert location == str(allowed.resolve() / "monday")
    store.fail(job, f"{location}/a.jpg: Input/output error; {store.results_path(job)} is full")
    visible = f"{source}/a.jpg: Input/output error; … is full"
    assert http.get(f"/v1/jobs/{job}").json()["error"] == visible
    assert [state["error"] for state in http.get("/v1/jobs").json()["jobs"]] == [visible]
    assert http.delete(f"/v1/jobs/{job}").json()["error"] == visible
    upload = http.post("/v1/jobs", files={"file": ("my photos.zip", make_zip())}).json()["id"]
    store.fail(upload, f"{store.input_path(upload)}: cannot be read as a zip")
    assert http.get(f"/v1/jobs/{upload}").json()["error"] == "my photos.zip: cannot be read as a zip"
