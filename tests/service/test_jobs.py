"""Batch jobs beside the running service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve_app.batch.plan import BatchJobConfig
from serve_app.batch.results import ResultsFolder
from serve_app.batch.sources import open_source
from serve_app.batch.worker import Decoder, Predictor
from serve_app.inference.card import load_card
from tests.support.polling import wait_for
from tests.support.running import Running
from tests.support.services import zipped
from tests.support.weights import tiny


@pytest.fixture(scope="module")
def http(running: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.api, timeout=60) as client:
        yield client


def wait_for_job(http: httpx2.Client, path: str) -> dict[str, Any]:
    """Return the state of a job once it has ended."""
    wait_for(lambda: http.get(path).json()["status"] not in ("queued", "running"), what="the end of the job")
    state: dict[str, Any] = http.get(path).json()
    return state


def online(http: httpx2.Client, mixed_photos: dict[str, bytes]) -> dict[str, dict[str, float] | str]:
    """Return what /v1/classify says of each photo: scores by label, or the error's code."""
    files = [("images", (name, photo)) for name, photo in mixed_photos.items()]
    return {
        row["id"]: row["error"]["code"]
        if row["status"] == "error"
        else {p["label"]: p["score"] for p in row["predictions"]}
        for row in http.post("/v1/classify", files=files).json()["results"]
    }


def check_equal(results: dict[str, dict[str, float] | str], expected: dict[str, dict[str, float] | str]) -> None:
    """Check for the same codes of broken images, and for scores within 1e-3 of the others."""
    assert results.keys() == expected.keys()
    for name, scores in expected.items():
        assert results[name] == (scores if isinstance(scores, str) else pytest.approx(scores, abs=1e-3)), name


def test_the_command_answers_as_the_service_does(
    http: httpx2.Client, mixed_photos: dict[str, bytes], tmp_path: Path
) -> None:
    """A job of the command line gives each file the scores, or the error code, of /v1/classify."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, photo in mixed_photos.items():
        (folder / name).write_bytes(photo)
    job = BatchJobConfig(source=str(folder), out=str(tmp_path / "out"), weights=tiny())
    results = ResultsFolder(job.out)
    results.begin(job, load_card(job.weights), open_source(job.source).names(), 100)
    Predictor(job)(Decoder(job)(0))
    (part,) = results.parts()
    rows_by_name = {
        row["path"]: row["error"] or dict(zip(row["labels"], row["scores"], strict=True))
        for row in results.read_part(part).to_pylist()
    }
    check_equal(rows_by_name, online(http, mixed_photos))


def test_a_zip_over_http_answers_as_the_service_does(http: httpx2.Client, mixed_photos: dict[str, bytes]) -> None:
    """A zip posted to /v1/jobs is classified beside the service; its rows equal those of /v1/classify."""
    sent = http.post("/v1/jobs", content=zipped(mixed_photos, 1), headers={"content-type": "application/zip"})
    assert sent.status_code == 202, sent.text
    state = wait_for_job(http, sent.headers["location"])
    assert (state["status"], state["progress"]) == ("succeeded", {"total": 30, "done": 30, "failed": 3}), state
    rows = http.get(f"{sent.headers['location']}/results").json()
    rows_by_name = {
        row["path"].removeprefix("0/"): row["error"]["code"]
        if row["status"] == "error"
        else {p["label"]: p["score"] for p in row["predictions"]}
        for row in rows
    }
    check_equal(rows_by_name, online(http, mixed_photos))
