"""The job store keeps jobs through power cuts and full disks, and deletes what is no longer needed, nothing else."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve_app.batch.job_store import JobStore
from tests.support.faults import DiskRecorder, full_disk
from tests.support.jobs import submit_job
from tests.support.paths import ROOT

DAY_S = 86400


def age(path: Path, days: float) -> None:
    modified = time.time() - days * DAY_S
    os.utime(path, (modified, modified))


def test_sweep_deletes_old_jobs(tmp_path: Path) -> None:
    """An ended job loses its zip at once and everything after `keep_days`; open jobs stay."""
    store = JobStore(tmp_path)
    old, fresh = submit_job(store), submit_job(store)
    store.cancel(old)
    age(tmp_path / old / "cancelled", days=7)
    store.sweep(keep_days=8)
    assert not (tmp_path / old / "upload.zip").exists()
    assert {state.id for state in store.jobs()} == {old, fresh}
    store.sweep(keep_days=6)
    assert [state.id for state in store.jobs()] == [fresh]
    assert not (tmp_path / old).exists()
    assert (tmp_path / fresh / "upload.zip").exists()


def test_sweep_deletes_abandoned_uploads(tmp_path: Path) -> None:
    """A draft of more than a day is an upload that never ended; a fresh draft may still be arriving."""
    store = JobStore(tmp_path)
    abandoned, arriving = store.draft(), store.draft()
    age(abandoned, days=1.1)
    store.sweep(keep_days=7)
    assert (abandoned.exists(), arriving.exists()) == (False, True)


def test_upload_that_still_arrives_is_not_abandoned(tmp_path: Path) -> None:
    """What counts is the last byte, not the first: a slow upload may take more than a day."""
    store = JobStore(tmp_path)
    draft = store.draft()
    (draft / "upload.zip").write_bytes(b"first part")
    age(draft, days=3)
    store.sweep(keep_days=7)
    assert draft.exists()
    age(draft / "upload.zip", days=1.1)
    store.sweep(keep_days=7)
    assert not draft.exists()


SWEEP = """
import sys
from pathlib import Path
from serve_app.batch.job_store import JobStore
store = JobStore(Path(sys.argv[1]))
sys.stdin.readline()
for _ in range(20):
    store.sweep(keep_days=7)
    store.jobs(), store.open_jobs()
"""


def test_processes_sweep_at_the_same_time(tmp_path: Path) -> None:
    """Three processes sweep while jobs are submitted: none fails, old jobs go, all others stay whole."""
    store = JobStore(tmp_path)
    old = [submit_job(store) for _ in range(60)]
    for job in old:
        store.cancel(job)
        age(tmp_path / job / "cancelled", days=8)
    drafts = [store.draft() for _ in range(20)]
    for draft in drafts:
        age(draft, days=2)
    command = [sys.executable, "-c", SWEEP, str(tmp_path)]
    sweeping = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True) for _ in range(3)]
    for process in sweeping:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.close()
    fresh = []
    while any(process.poll() is None for process in sweeping):
        if len(fresh) < 50:
            fresh.append(submit_job(store))
        store.sweep(keep_days=7)
        store.jobs()
    assert [process.returncode for process in sweeping] == [0, 0, 0]
    store.sweep(keep_days=7)
    assert {state.id for state in store.jobs()} == set(fresh)
    assert all((tmp_path / job / "upload.zip").read_bytes() == b"zip" for job in fresh)
    assert {path.name for path in tmp_path.iterdir()} == {*fresh, ".sweep.lock"}


def test_killed_sweep_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job vanishes for readers at once; what a killed process has not deleted is deleted later."""
    store = JobStore(tmp_path)
    job = submit_job(store)
    store.cancel(job)
    age(tmp_path / job / "cancelled", days=8)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_args, **_options: None)
        store.sweep(keep_days=7)
    assert store.jobs() == []
    assert len(list(tmp_path.glob(".deleted-*/job.json"))) == 1
    store.sweep(keep_days=7)
    assert list(tmp_path.glob(".deleted-*")) == []


@pytest.mark.parametrize("function", ["unlink", "rename", "listdir"])
def test_vanishing_files_do_not_stop_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """Another node, whose lock this one may not see, deletes what this sweep just found."""
    store = JobStore(tmp_path)
    jobs = [submit_job(store) for _ in range(3)]
    for job in jobs:
        store.cancel(job)
        age(tmp_path / job / "cancelled", days=8)
    original = getattr(os, function)

    def delete_first(path: str, *arguments: object, **options: object) -> object:
        result = original(path, *arguments, **options) if function == "listdir" else None
        shutil.rmtree(tmp_path / jobs[1], ignore_errors=True)
        return result or original(path, *arguments, **options)

    monkeypatch.setattr(os, function, delete_first)
    store.sweep(keep_days=7)
    monkeypatch.undo()
    store.sweep(keep_days=7)
    assert store.jobs() == []


def test_sweep_makes_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock file cannot be created then; the sweep works without it."""
    store = JobStore(tmp_path)
    job = submit_job(store)
    store.cancel(job)
    age(tmp_path / job / "cancelled", days=8)
    monkeypatch.setattr("serve_app.batch.job_sweep.exclusive_lock", full_disk)
    store.sweep(keep_days=7)
    assert not (tmp_path / job).exists()


def test_submitted_job_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zip, request and draft folder are fsynced before the rename that publishes them, the folder of jobs after it."""
    disk = DiskRecorder(monkeypatch)
    job = submit_job(JobStore(tmp_path / "jobs"))
    assert (disk.renamed, disk.unsafe, disk.unnamed) == ({"job.json", job}, [], [])


@pytest.mark.parametrize("function", ["rename", "replace", "fsync"])
def test_full_disk_is_no_unknown_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """A rename that fails for another reason than an existing job says so, and there is no job."""
    store = JobStore(tmp_path)
    monkeypatch.setattr(os, function, full_disk)
    with pytest.raises(OSError, match="No space left"):
        submit_job(store, key="monday")
    assert store.jobs() == []


def test_job_exists_although_its_folder_cannot_be_fsynced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the rename nothing fails: the caller gets the id."""
    store = JobStore(tmp_path)
    store.draft()

    def fsync(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("serve_app.batch.job_store.fsync", fsync)
    assert store.state(submit_job(store)).status == "queued"
