"""Jobs over HTTP, without Ray: what is taken and what is refused, whose they are, how they end, what comes out."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from serve_app.batch import supervisor
from serve_app.batch.job_store import Store
from serve_app.batch.results import Job, Output
from serve_app.config import JobsConfig, KeysConfig, WeightsConfig
from serve_app.http.app import create_app
from serve_app.http.auth import ApiKeys, hash_key
from serve_app.http.jobs import allowed
from serve_app.inference.card import load_card
from tests.conftest import make_photo
from tests.support.local_service import LocalService

ZIP = {"content-type": "application/zip"}
Change = Callable[[zipfile.ZipFile], None]


def zipped(*changes: Change, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of two photos and whatever else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for n in range(2):
            archive.writestr(f"a/{n}.jpg", make_photo(n, 64, 48))
        for change in changes:
            change(archive)
    return buffer.getvalue()


def entry(name: str, mode: int = 0o644 | stat.S_IFREG, flags: int = 0, data: bytes = b"x", method: int = 0) -> Change:
    """Adds an entry; a flag or method that zipfile would not write is patched into its directory afterwards."""

    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr, info.create_system = mode << 16, 3
        archive.writestr(info, data, zipfile.ZIP_DEFLATED if len(data) > 100 else zipfile.ZIP_STORED)
        info.flag_bits |= flags
        info.compress_type = method or info.compress_type

    return add


@pytest.fixture
def service(weights: WeightsConfig, tmp_path: Path) -> LocalService:
    found = LocalService(weights)
    (tmp_path / "allowed").mkdir()
    found.jobs = JobsConfig(
        folder=str(tmp_path / "jobs"),
        sources=("s3://photos/in", str(tmp_path / "allowed")),
        max_zip_bytes=2**20,
        max_zip_entries=50,
        max_unpacked_bytes=2**22,
        max_queued_jobs=3,
    )
    return found


@pytest.fixture
def http(service: LocalService) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as client:
        yield client


@pytest.fixture
def store(service: LocalService) -> Store:
    assert service.jobs
    return Store(Path(service.jobs.folder))


def work_off(store: Store) -> None:
    """Do what waits, with the command itself on a Ray of its own."""
    worker = supervisor.Supervisor(store, None, 1)
    until = time.monotonic() + 120
    while store.open_jobs():
        assert time.monotonic() < until
        time.sleep(0.1)
    worker.stop()


def test_switched_off_says_how_to_switch_on(http: TestClient, service: LocalService) -> None:
    service.jobs = None
    for answer in (http.post("/v1/jobs", content=zipped(), headers=ZIP), http.get("/v1/jobs")):
        assert (answer.status_code, answer.json()["code"]) == (404, "jobs_off")
        assert "jobs: {folder: …}" in answer.json()["detail"]


def test_a_zip_becomes_a_job(http: TestClient, store: Store) -> None:
    """Raw or as a form: 202, Location and a place in the queue; the zip is kept as it came."""
    body = zipped()
    answer = http.post("/v1/jobs?top_k=3", content=body, headers=ZIP)
    job = answer.json()["id"]
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job}")
    form = http.post("/v1/jobs", files={"file": ("photos.zip", body, "application/zip")})
    assert (form.status_code, form.json()["source"]) == (202, "photos.zip")
    state = http.get(f"/v1/jobs/{job}").json()
    assert (state["status"], state["top_k"]) == ("queued", 3)
    assert state["progress"] == {"total": None, "done": 0, "failed": 0}
    early = http.get(f"/v1/jobs/{job}/results")
    assert (early.status_code, early.json()["code"]) == (409, "conflict")
    assert [each["id"] for each in http.get("/v1/jobs").json()["jobs"]] == [form.json()["id"], job]
    assert store.open_jobs() == [job, form.json()["id"]]
    for each in store.open_jobs():
        assert Path(store.input(each)).read_bytes() == body


def test_results_in_four_formats(http: TestClient, store: Store, weights: WeightsConfig) -> None:
    """The same rows as JSON, JSON lines, CSV and Parquet; failed ones alone."""
    job = http.post("/v1/jobs?top_k=2", content=zipped(), headers=ZIP).json()["id"]
    output = Output(str(store.results(job)))
    output.begin(Job(source="s", out="o", weights=weights), load_card(weights), ["a", "b", "c"], 2)
    sure = {"labels": ["ant", "bee"], "scores": [0.75, 0.25], "class_ids": [0, 1], "margin": 0.5, "entropy": 0.5}
    for shard, names in enumerate((["a", "b"], ["c"])):
        rows = [{"path": name, "error": None, "detail": None, "version": "v", **sure} for name in names]
        if shard:
            rows[0] |= dict.fromkeys(sure) | {"error": "invalid_image", "detail": "truncated, or so"}
        output.write_part(shard, rows)
    output.write_json("summary.json", {})

    def get(kind: str, only: str = "all") -> Any:
        found = http.get(f"/v1/jobs/{job}/results", params={"format": kind, "only": only})
        assert found.status_code == 200
        assert f'{job}.{kind}"' in found.headers["content-disposition"]
        return found

    rows = get("json").json()
    assert [row["path"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["predictions"][1] == {"label": "bee", "score": 0.25, "class_id": 1}
    assert rows[2]["error"] == {"code": "invalid_image", "detail": "truncated, or so"}
    assert rows == [json.loads(line) for line in get("jsonl").text.splitlines()]
    lines = list(csv.DictReader(io.StringIO(get("csv").text)))
    assert (lines[1]["label_2"], lines[1]["score_2"], lines[2]["label_1"]) == ("bee", "0.25", "")
    assert lines[2]["detail"] == "truncated, or so"
    table = pq.read_table(io.BytesIO(get("parquet").content))
    assert table["path"].to_pylist() == ["a", "b", "c"]
    assert [row["path"] for row in get("json", "failed").json()] == ["c"]
    assert len(get("csv", "ok").text.splitlines()) == 3
    assert http.get(f"/v1/jobs/{job}/results", params={"format": "xml"}).status_code == 422


TRICKS: dict[str, tuple[bytes, int, str]] = {
    "up": (zipped(entry("../../etc/cron.d/x")), 422, "leads out of the zip"),
    "up inside": (zipped(entry("a/../../x.jpg")), 422, "leads out of the zip"),
    "absolute": (zipped(entry("/etc/passwd")), 422, "leads out of the zip"),
    "drive": (zipped(entry("C:x.jpg")), 422, "leads out of the zip"),
    "backslash": (zipped(entry("..\\x.jpg")), 422, "leads out of the zip"),
    "symlink": (zipped(entry("link.jpg", 0o777 | stat.S_IFLNK, data=b"/etc/passwd")), 422, "a link or a device"),
    "device": (zipped(entry("null", 0o666 | stat.S_IFCHR)), 422, "a link or a device"),
    "encrypted": (zipped(entry("a.jpg", flags=1)), 422, "encrypted"),
    "bzip2": (zipped(entry("a.jpg", method=zipfile.ZIP_BZIP2)), 422, "compression method 12"),
    "entries": (zipped(*(entry(f"{n}.jpg") for n in range(60))), 413, "62 entries"),
    "long names": (zipped(*(entry(f"{n}{'x' * 600}.jpg") for n in range(20))), 413, "directory has"),
    "bomb": (zipped(entry("zero.bmp", data=bytes(4_000_000))), 413, "grows"),
    "large": (zipped(*(entry(f"{n}.bmp", data=bytes(1_100_000)) for n in range(4))), 413, "bytes once unpacked"),
    "text": (b"no zip at all", 400, "no whole zip"),
    "cut": (zipped()[:-30], 400, "no whole zip"),
    "nothing": (b"", 400, "no whole zip"),
    "no files": (b"PK\5\6" + bytes(18), 400, "holds no files"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_zip_tricks_are_refused(http: TestClient, store: Store, trick: str) -> None:
    """Each with its own status and a sentence, before anything is unpacked; nothing of it stays."""
    body, status, sentence = TRICKS[trick]
    answer = http.post("/v1/jobs", content=body, headers=ZIP)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert sentence in answer.json()["detail"]
    assert list(store.folder.iterdir()) == []


def test_the_same_name_twice_is_refused(http: TestClient) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        body = zipped(entry("a/0.jpg"))
    assert "twice" in http.post("/v1/jobs", content=body, headers=ZIP).json()["detail"]


@pytest.mark.parametrize(
    ("send", "status", "sentence"),
    [
        ({"content": bytes(2**20 + 1), "headers": ZIP}, 413, "has 1,048,577 bytes; the limit is 1,048,576 (1.0 MB)"),
        ({"content": iter([bytes(2**19)] * 3), "headers": ZIP}, 413, "the limit is 1,048,576 (1.0 MB)"),
        ({"files": {"zip": zipped()}}, 400, "one file, in the field 'file'"),
        ({"files": [("file", zipped()), ("file", zipped())]}, 400, "several files"),
        ({"data": {"file": "text"}, "files": {"file": zipped()}}, 400, "one file"),
        ({"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "multipart"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "names no boundary"),
        ({"content": b"x", "headers": {"content-type": "image/jpeg"}}, 415, "send application/zip"),
        ({"json": {"sauce": "s3://photos/in"}}, 400, "sauce: unknown name"),
        ({"json": {"source": "s3://photos/inside"}}, 403, "not below a prefix"),
        ({"content": zipped(), "headers": ZIP, "params": {"top_k": 0}}, 422, "top_k"),
        ({"content": zipped(), "headers": ZIP | {"idempotency-key": "x" * 201}}, 422, "Idempotency-Key"),
    ],
    ids=str,
)
def test_what_a_client_sends_wrong(http: TestClient, send: dict[str, Any], status: int, sentence: str) -> None:
    answer = http.post("/v1/jobs", **send)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert sentence in answer.json()["detail"]


def test_only_what_is_allowed_may_be_named(tmp_path: Path) -> None:
    """The prefix itself and what is below it; no way out, no pattern, no link, no settings of a connection."""
    top = tmp_path / "in"
    (top / "sub").mkdir(parents=True)
    (top / "out").symlink_to(tmp_path)
    prefixes = ("s3://photos/in/", str(top))
    for good in ("s3://photos/in", "s3://photos/in/2026", str(top), f"{top}/sub"):
        assert allowed(good, prefixes) == good
    for bad in (
        *("s3://photos/input", "s3://photos", "s3://photos/in/../x", "s3://photos/in?endpoint_override=evil"),
        *("s3://k" + ":s@photos/in", f"{top}/../x", f"{top}/*", f"{top}/out", "/etc", "in", "s3://photos/in/%2e%2e/x"),
    ):
        with pytest.raises(Exception, match="not below a prefix"):
            allowed(bad, prefixes)


def test_a_key_sent_again_gives_the_same_job(http: TestClient, store: Store) -> None:
    """Same body: the same job. Another body: 409. Another key or none: another job."""
    key = {"idempotency-key": "monday"}
    first, again = (http.post("/v1/jobs", content=zipped(), headers=ZIP | key) for _ in range(2))
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    other = http.post("/v1/jobs", content=zipped(entry("b.jpg")), headers=ZIP | key)
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert http.post("/v1/jobs?top_k=2", content=zipped(), headers=ZIP | key).status_code == 409
    assert http.post("/v1/jobs", content=zipped(), headers=ZIP).json()["id"] != first.json()["id"]
    assert len(list(store.folder.iterdir())) == 2


def test_cancel_and_the_most_that_wait(http: TestClient) -> None:
    """A full queue refuses with 503 and Retry-After; a cancelled job makes room, and stays cancelled."""
    jobs = [http.post("/v1/jobs", json={"source": "s3://photos/in"}).json()["id"] for _ in range(3)]
    full = http.post("/v1/jobs", json={"source": "s3://photos/in"})
    assert (full.status_code, full.headers["retry-after"]) == (503, "60")
    for _ in range(2):
        assert http.delete(f"/v1/jobs/{jobs[0]}").json()["status"] == "cancelled"
    assert http.post("/v1/jobs", json={"source": "s3://photos/in"}).status_code == 202
    assert http.get(f"/v1/jobs/{jobs[0]}/results").json() == []
    for path in (f"/v1/jobs/{'0' * 32}", "/v1/jobs/..%2f..%2fetc", f"/v1/jobs/{'0' * 32}/results"):
        assert http.get(path).status_code == 404
    assert http.delete(f"/v1/jobs/{'0' * 32}").json()["code"] == "unknown_job"


def test_callers_see_their_own_jobs_only(http: TestClient, service: LocalService) -> None:
    service.keys = ApiKeys(KeysConfig(hashes={"ann": hash_key("a"), "bob": hash_key("b")}))
    ann, bob = ({"x-api-key": key} for key in "ab")
    assert http.post("/v1/jobs", content=zipped(), headers=ZIP).status_code == 401
    mine = http.post("/v1/jobs", content=zipped(), headers=ZIP | ann | {"idempotency-key": "k"}).json()["id"]
    theirs = http.post("/v1/jobs", content=zipped(entry("c.jpg")), headers=ZIP | bob | {"idempotency-key": "k"})
    assert theirs.status_code == 202
    assert [job["id"] for job in http.get("/v1/jobs", headers=ann).json()["jobs"]] == [mine]
    for method in ("GET", "DELETE"):
        assert http.request(method, f"/v1/jobs/{mine}", headers=bob).json()["code"] == "unknown_job"


def test_old_jobs_are_forgotten(http: TestClient, store: Store) -> None:
    """After their days they and what they brought are gone; those that have not ended stay."""
    old, fresh = (http.post("/v1/jobs", content=zipped(), headers=ZIP).json()["id"] for _ in range(2))
    store.cancel(old)
    week_ago = time.time() - 7 * 86400
    os.utime(store.folder / old / "cancelled", (week_ago, week_ago))
    store.sweep(8)
    assert not (store.folder / old / "upload.zip").exists()
    store.sweep(6)
    assert [state.id for state in store.jobs()] == [fresh]
    assert not (store.folder / old).exists()


def test_a_job_that_cannot_be_done_says_why(http: TestClient, store: Store, service: LocalService) -> None:
    """The command's own sentence."""
    assert service.jobs
    job = http.post("/v1/jobs", json={"source": service.jobs.sources[1]}).json()["id"]
    work_off(store)
    state = http.get(f"/v1/jobs/{job}").json()
    assert (state["status"], state["error"]) == ("failed", f"{service.jobs.sources[1]} holds no files")


def test_streams_hold_one_part_at_a_time(tmp_path: Path, weights: WeightsConfig) -> None:
    """A Parquet file of many parts is whole, and each piece is as small as its part."""
    from serve_app.batch.export import stream

    output = Output(str(tmp_path))
    output.begin(Job(source="s", out=str(tmp_path), weights=weights), load_card(weights), map(str, range(500)), 10)
    for shard in range(50):
        names = [f"{shard:02}-{n}" for n in range(10)]
        empty = {"labels": None, "scores": None, "class_ids": None, "margin": None, "entropy": None, "version": "v"}
        output.write_part(shard, [{"path": name, "error": "e", "detail": name * 50, **empty} for name in names])
    pieces = list(stream(output, "parquet", "all", 3))
    assert len(pieces) >= 50
    with tempfile.TemporaryFile() as file:
        file.write(b"".join(pieces))
        table = pq.read_table(file)
    assert table.num_rows == 500
    assert table["path"][0].as_py() == "00-0"
    assert max(map(len, pieces[:-1])) < 4_000  # the last is the footer
