"""Jobs beside the running service."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve_app.batch.plan import BatchJobConfig
from serve_app.batch.results import ResultsFolder
from serve_app.batch.sources import open_source
from serve_app.batch.worker import Decoder, Predictor
from serve_app.inference.card import load_card
from tests.conftest import encode, make_photo, make_picture
from tests.support.configs import local, tuned, write
from tests.support.running import Running, start

SIZES = [(320, 240), (240, 320), (48, 48), (1200, 900)]


@pytest.fixture(scope="module")
def http(running: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.api, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    """Thirty files, of several kinds; three of them are broken."""
    found = {f"{n:02}.jpg": make_photo(n, *SIZES[n % 4]) for n in range(24)}
    found |= {f"p{n}.png": encode(make_picture(100, 80, n), "PNG") for n in range(3)}
    return found | {"cut.jpg": found["03.jpg"][:900], "text.jpg": b"text", "empty.jpg": b""}


def online(http: httpx2.Client, photos: dict[str, bytes]) -> dict[str, dict[str, float] | str]:
    """What the service says over HTTP: scores by class, or the error's code."""
    files = [("images", (name, photo)) for name, photo in photos.items()]
    results = http.post("/v1/classify", files=files).json()["results"]
    return {
        each["id"]: each["error"]["code"]
        if each["status"] == "error"
        else {p["label"]: p["score"] for p in each["predictions"]}
        for each in results
    }


def agrees(found: dict[str, dict[str, float] | str], expected: dict[str, dict[str, float] | str]) -> bool:
    """The same codes for broken images, scores within 1e-3 for the others."""
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert found[name] == (wanted if isinstance(wanted, str) else pytest.approx(wanted, abs=1e-3)), name
    return True


def test_the_command_answers_as_the_service_does(http: httpx2.Client, photos: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, photo in photos.items():
        (folder / name).write_bytes(photo)
    job = BatchJobConfig(source=str(folder), out=str(tmp_path / "out"))
    results = ResultsFolder(job.out)
    results.begin(job, load_card(job.weights), open_source(job.source).names(), 100)
    Predictor(job)(Decoder(job)(0))
    (part,) = results.parts()
    found = {
        row["path"]: row["error"] or dict(zip(row["labels"], row["scores"], strict=True))
        for row in results.read_part(part).to_pylist()
    }
    assert agrees(found, online(http, photos))


def test_a_zip_over_http_answers_as_the_service_does(http: httpx2.Client, photos: dict[str, bytes]) -> None:
    """Submitted, worked off beside the service, and its rows are those of /v1/classify."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, photo in photos.items():
            archive.writestr(name, photo)
    sent = http.post("/v1/jobs", content=buffer.getvalue(), headers={"content-type": "application/zip"})
    assert sent.status_code == 202, sent.text
    state, until = sent.json(), time.monotonic() + 120
    while state["status"] in ("queued", "running"):
        assert time.monotonic() < until, state
        time.sleep(0.5)
        state = http.get(sent.headers["location"]).json()
    assert (state["status"], state["progress"]) == ("succeeded", {"total": 30, "done": 30, "failed": 3}), state
    rows = http.get(f"{sent.headers['location']}/results").json()
    found = {
        row["path"]: row["error"]["code"]
        if row["status"] == "error"
        else {p["label"]: p["score"] for p in row["predictions"]}
        for row in rows
    }
    assert agrees(found, online(http, photos))


def test_a_job_outlives_the_service(photos: dict[str, bytes], tmp_path: Path) -> None:
    """Ended in the middle of a job and started again: the job goes on by itself, each image is there once."""
    config = tuned(local(), "Ingress", jobs={"folder": str(tmp_path / "jobs")})
    command = f"ARGS=--no-page --config {write(config, tmp_path)}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for n in range(30):
            for name, photo in photos.items():
                archive.writestr(f"{n}/{name}", photo)

    def job(service: Running, path: str, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 180
        while not until(state := httpx2.get(service.api + path, timeout=60).json()):
            assert time.monotonic() < deadline, state
            time.sleep(0.2)
        return state

    with start(command) as service:
        headers = {"content-type": "application/zip"}
        sent = httpx2.post(f"{service.api}/v1/jobs", content=buffer.getvalue(), headers=headers, timeout=60)
        path = sent.headers["location"]
        left = job(service, path, lambda state: state["progress"]["done"] > 0)
        assert left["status"] == "running"
    with start(command) as service:
        ended = job(service, path, lambda state: state["status"] not in ("queued", "running"))
        assert (ended["status"], ended["progress"]) == ("succeeded", {"total": 900, "done": 900, "failed": 90})
        rows = httpx2.get(f"{service.api}{path}/results", timeout=60).json()
    assert sorted(row["path"] for row in rows) == sorted(f"{n}/{name}" for n in range(30) for name in photos)
