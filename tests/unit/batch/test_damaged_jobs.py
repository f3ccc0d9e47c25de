"""A job with damaged files, or files of another version, never affects the others; nothing refuses to start."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from serve_app.batch.job_records import JobAttempts
from serve_app.batch.job_store import JobStore
from serve_app.errors import ConflictError, CorruptJobError, UnknownJobError
from tests.support.faults import WRONG_JSON, emptied
from tests.support.jobs import submit_job

PROGRESS = {"total": 9, "done": 3, "failed": 1, "eta_s": 2.5}
STORED = ("job.json", "progress.json", "attempts.json", "failed.json", "results/summary.json")


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs")


@pytest.fixture
def damaged(store: JobStore) -> str:
    """A job with a file of every kind."""
    job = submit_job(store, caller="ann", key="monday")
    store.record_attempts(job, JobAttempts(started=1))
    store.progress_path(job).write_text(json.dumps(PROGRESS))
    store.results_path(job).mkdir()
    (store.results_path(job) / "summary.json").write_text("{}")
    store.fail(job, "why")
    return job


def change(store: JobStore, job: str, **fields: Any) -> None:
    """Change fields of a job's request, as another version would have written them."""
    path = store.folder / job / "job.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def use_everything(store: JobStore, job: str) -> None:
    """Do with a store what the service does with it."""
    assert store.state(job).id == job
    assert job in {state.id for state in store.jobs()}
    store.open_jobs()
    store.attempts(job)
    store.input_path(job)
    store.cancel(job)
    store.sweep(keep_days=7)


def test_power_cut_empties_any_file(store: JobStore, damaged: str) -> None:
    """Whichever file is empty or full of zeros: the store works, and the other jobs are what they were."""
    others = [submit_job(store), submit_job(store, "/photos")]
    expected = [store.state(job) for job in others]
    cut = set()
    for path in emptied(store.folder / damaged):
        use_everything(store, damaged)
        assert [store.state(job) for job in others] == expected
        assert store.open_jobs() == others
        cut.add(str(path.relative_to(store.folder / damaged)))
    assert cut >= set(STORED)


@pytest.mark.parametrize("content", WRONG_JSON)
@pytest.mark.parametrize("name", STORED)
def test_file_that_is_no_such_json(store: JobStore, damaged: str, name: str, content: bytes) -> None:
    other = submit_job(store)
    (store.folder / damaged / name).write_bytes(content)
    use_everything(store, damaged)
    assert store.open_jobs() == [other]


@pytest.mark.parametrize("name", ["job.json", "failed.json", "progress.json", "results/summary.json"])
def test_missing_or_strange_file(store: JobStore, damaged: str, name: str) -> None:
    """A file that is gone, or a folder in its place, stops nothing either."""
    other = submit_job(store)
    path = store.folder / damaged / name
    path.unlink()
    assert other in store.open_jobs()
    path.mkdir()
    assert other in store.open_jobs()
    store.sweep(keep_days=7)


def test_folder_of_jobs_with_other_things_in_it(store: JobStore) -> None:
    """Files and empty folders with the name of a job are no jobs."""
    job = submit_job(store)
    (store.folder / ("a" * 32)).touch()
    (store.folder / ("b" * 32)).mkdir()
    (store.folder / "lost+found").mkdir()
    assert [state.id for state in store.jobs()] == [job]
    store.sweep(keep_days=7)
    with pytest.raises(UnknownJobError):
        store.state("a" * 32)


def test_newer_version_only_added_fields(store: JobStore) -> None:
    """After a rollback, a job of the newer version runs; fields that this version does not know are ignored."""
    job = submit_job(store)
    request = json.loads((store.folder / job / "job.json").read_text())
    nested = {name: {**request[name], "new": 1} for name in ("weights", "engine", "limits", "model")}
    change(store, job, priority="high", **nested)
    store.progress_path(job).write_text(json.dumps({**PROGRESS, "gpu": True}))
    assert (store.state(job).status, store.state(job).progress.done) == ("running", 3)
    assert store.open_jobs() == [job]
    assert store.request(job).weights.source == "demo"


def test_newer_version_with_a_value_that_this_one_lacks(store: JobStore) -> None:
    """The job counts as failed and says why, to its caller only; its files stay, and after an upgrade it goes on."""
    job, other = submit_job(store, caller="ann"), submit_job(store, caller="bob")
    before = (store.folder / job / "job.json").read_text()
    change(store, job, engine={"runtime": "tpu", "precision": "fp8"})
    state = store.state(job, "ann")
    assert (state.status, state.source, state.top_k) == ("failed", "photos", 1)
    assert state.error is not None
    assert "another version (engine.runtime" in state.error
    assert [state.id for state in store.jobs("ann")] == [job]
    assert [state.id for state in store.jobs("bob")] == [other]
    with pytest.raises(UnknownJobError):
        store.state(job, "bob")
    with pytest.raises(CorruptJobError, match="submit it again"):
        store.request(job, "ann")
    assert store.open_jobs() == [other]
    store.sweep(keep_days=7)
    assert (store.folder / job / "upload.zip").exists()
    (store.folder / job / "job.json").write_text(before)
    assert job in store.open_jobs()


def test_job_of_nobody_is_shown_to_nobody(store: JobStore, damaged: str) -> None:
    """Without its request a job has no known caller: lists of callers leave it out, and its results stay closed."""
    (store.folder / damaged / "job.json").write_bytes(b"")
    assert store.jobs("ann") == store.jobs("bob") == []
    assert [state.status for state in store.jobs()] == ["failed"]
    assert store.state(damaged, "ann").status == "failed"
    with pytest.raises(CorruptJobError):
        store.request(damaged, "ann")


def test_damaged_job_keeps_its_idempotency_key(store: JobStore, damaged: str) -> None:
    """Whether the repeated request is the same cannot be known: the sentence says to take a new key."""
    (store.folder / damaged / "job.json").write_bytes(b"")
    with pytest.raises(ConflictError, match=r"'monday'.* with a new key"):
        submit_job(store, caller="ann", key="monday")
    (store.folder / damaged / "job.json").unlink()  # nobody can see it any more
    assert submit_job(store, caller="ann", key="monday") == damaged
    assert store.state(damaged).status == "queued"


def test_damaged_job_is_swept_like_others(store: JobStore, damaged: str) -> None:
    path = store.folder / damaged / "job.json"
    path.write_bytes(b"")
    (store.folder / damaged / "failed.json").unlink()
    (store.folder / damaged / "results" / "summary.json").write_bytes(b"")
    week = time.time() - 7 * 86400
    os.utime(path, (week, week))
    store.sweep(keep_days=8)
    assert path.exists()
    store.sweep(keep_days=6)
    assert not path.parent.exists()


def test_created_without_a_time_zone(store: JobStore) -> None:
    """Times with and without a zone sort together."""
    jobs = [submit_job(store) for _ in range(3)]
    change(store, jobs[1], created="2020-01-01T00:00:00")
    assert [state.id for state in store.jobs()] == [jobs[2], jobs[0], jobs[1]]


def test_lost_reason_of_a_failure_says_so(store: JobStore, damaged: str) -> None:
    (store.folder / damaged / "failed.json").write_bytes(b"")
    assert store.state(damaged).error == "the job failed; the reason is lost"
