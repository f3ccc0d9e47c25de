"""The job store deletes what is no longer needed, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

from serve_app.batch.job_store import JobStore
from tests.support.jobs import submit_job

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
