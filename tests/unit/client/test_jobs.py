"""Jobs through the client, over a job store without Ray."""

from __future__ import annotations

import io
from pathlib import Path

import httpx2
import pyarrow.parquet as pq
import pytest

from serve_app.batch.job_store import JobStore
from serve_app.batch.plan import BatchJobConfig
from serve_app.batch.results import ResultsFolder
from serve_app.config import JobsConfig, WeightsConfig
from serve_app.inference.card import load_card
from serve_client import AsyncClient, Client, JobTimeoutError, Prediction, errors
from serve_client.operations import Operations
from serve_client.session import Session
from serve_client.transport import BlockingTransport, run
from tests.support.local_service import LocalService
from tests.support.zips import entry, make_zip
from tests.unit.client.conftest import URL, LosesTheFirstPost

CLASSES = {"labels": ["ant", "bee"], "scores": [0.75, 0.25], "class_ids": [0, 1], "margin": 0.5, "entropy": 0.5}


@pytest.fixture
def store(service: LocalService, tmp_path: Path) -> JobStore:
    """The jobs of the service, which takes them from one bucket prefix."""
    folder = tmp_path / "jobs"
    service.configure(jobs=JobsConfig(folder=str(folder), sources=("s3://photos/in",)))
    folder.mkdir()
    return JobStore(folder)


def finish(store: JobStore, job: str, weights: WeightsConfig) -> None:
    """Write the results of a job: two classified images and a broken one."""
    results = ResultsFolder(str(store.results_path(job)))
    results.begin(BatchJobConfig(source="s", out="o", weights=weights), load_card(weights), ["a", "b", "c"], 3)
    rows = [{"path": name, "error": None, "detail": None, "version": "v", **CLASSES} for name in "abc"]
    rows[2] |= dict.fromkeys(CLASSES) | {"error": "invalid_image", "detail": "truncated"}
    results.write_part(0, rows)
    results.write_json("summary.json", {})


def test_a_zip_by_path_bytes_and_file(client: Client, store: JobStore, tmp_path: Path) -> None:
    """All three arrive byte for byte, whatever was read of the file before; parameters come along."""
    path = tmp_path / "photos.zip"
    path.write_bytes(make_zip())
    with path.open("rb") as file:
        file.read(7)
        jobs = [client.jobs.submit(archive, top_k=3) for archive in (path, make_zip(), file)]
    for job in jobs:
        assert (job.status, job.top_k, job.embed, job.progress.total, job.ended) == ("queued", 3, False, None, False)
        assert Path(store.input_path(job.id)).read_bytes() == make_zip()
    assert [job.id for job in client.jobs.list().jobs] == [job.id for job in reversed(jobs)]
    assert client.jobs.get(jobs[0]) == client.jobs.get(jobs[0].id) == jobs[0]


def test_one_key_is_one_job(client: Client, store: JobStore) -> None:
    """Calls with the same key find the same job; calls without one start a job each."""
    first, again = (client.jobs.submit(make_zip(), idempotency_key="monday") for _ in range(2))
    assert first.id == again.id
    with pytest.raises(errors.ConflictError):
        client.jobs.submit(make_zip(entry("b.jpg")), idempotency_key="monday")
    assert client.jobs.submit(make_zip()).id != first.id


def test_a_lost_response_starts_no_second_job(transport: httpx2.BaseTransport, store: JobStore) -> None:
    """The upload is sent again, whole and under the same key, and finds the job."""
    losing = LosesTheFirstPost(transport)
    http = httpx2.Client(base_url=URL, transport=losing)
    operations = Operations(Session(BlockingTransport(http, lambda seconds: None), 60, 3))
    job = run(operations.jobs.submit(make_zip()))
    assert losing.posts == 2
    assert store.open_jobs() == [job.id]


def test_wrong_jobs_raise_their_exception(client: Client, store: JobStore, tmp_path: Path) -> None:
    with pytest.raises(errors.MalformedRequestError):
        client.jobs.submit(b"no zip")
    with pytest.raises(errors.InvalidArchiveError):
        client.jobs.submit(make_zip(entry("../a.jpg")))
    with pytest.raises(errors.ForbiddenSourceError):
        client.jobs.submit_source("s3://photos/inside")
    with pytest.raises(errors.UnknownJobError):
        client.jobs.get("0" * 32)
    with pytest.raises(FileNotFoundError):
        client.jobs.submit(tmp_path / "none.zip")
    job = client.jobs.submit_source("s3://photos/in", top_k=1, embed=True)
    assert (job.source, job.top_k, job.embed) == ("s3://photos/in", 1, True)
    with pytest.raises(errors.ConflictError, match="once it has ended"):
        next(client.jobs.results(job))
    assert client.jobs.cancel(job).status == "cancelled"


def test_waits_and_reads_rows(
    transport: httpx2.BaseTransport,
    store: JobStore,
    weights: WeightsConfig,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """`wait` polls with growing pauses until the job has ended; rows and files hold its results."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            finish(store, job.id, weights)

    with Client(URL, transport=transport) as client:
        job = client.jobs.submit(make_zip())
        http = httpx2.Client(base_url=URL, transport=transport)
        operations = Operations(Session(BlockingTransport(http, sleep), 60, 3))
        with pytest.raises(JobTimeoutError, match="is queued after 0 s"):
            run(operations.jobs.wait(job, timeout=0))
        state = run(operations.jobs.wait(job, progress=True))
        assert (state.status, state.ended, pauses) == ("succeeded", True, [0.5, 0.75, 1.125])
        assert "succeeded, failed=" in capfd.readouterr().err
        rows = list(client.jobs.results(job))
        assert [row.path for row in rows] == ["a", "b", "c"]
        assert rows[0].predictions[1] == Prediction("bee", 0.25, 1)
        assert rows[0].uncertainty is not None
        assert (rows[0].uncertainty.entropy, rows[0].version, rows[0].ok) == (0.5, "v", True)
        assert rows[2].error is not None
        assert (rows[2].error.code, rows[2].ok) == ("invalid_image", False)
        assert [row.path for row in client.jobs.results(job, only="failed")] == ["c"]
        client.jobs.download(job, tmp_path / "rows.parquet")
        assert pq.read_table(tmp_path / "rows.parquet")["path"].to_pylist() == ["a", "b", "c"]
        client.jobs.download(job, tmp_path / "rows.csv", format="csv", only="ok")
        assert len((tmp_path / "rows.csv").read_text().splitlines()) == 3


def test_a_failed_download_leaves_no_file(client: Client, store: JobStore, tmp_path: Path) -> None:
    job = client.jobs.submit(make_zip())
    with pytest.raises(errors.ConflictError):
        client.jobs.download(job, tmp_path / "rows.parquet")
    assert list(tmp_path.glob("rows*")) == []


async def test_jobs_of_the_async_client(
    async_client: AsyncClient, store: JobStore, weights: WeightsConfig, tmp_path: Path
) -> None:
    """Upload, wait, rows and file, on an event loop."""
    job = await async_client.jobs.submit(io.BytesIO(make_zip()))
    assert Path(store.input_path(job.id)).read_bytes() == make_zip()
    finish(store, job.id, weights)
    assert (await async_client.jobs.wait(job)).status == "succeeded"
    assert [row.ok async for row in async_client.jobs.results(job)] == [True, True, False]
    await async_client.jobs.download(job, tmp_path / "rows.jsonl", format="jsonl")
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3
