"""Delete what the folder of jobs needs no more; several processes may sweep it at a time."""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

from serve_app.batch.job_records import DELETED, DRAFT, ID, OUTCOMES, REQUEST, UPLOAD, read_outcome, read_request
from serve_app.errors import UnknownJobError
from serve_app.files import exclusive_lock

MAX_DRAFT_AGE_S = 86400  # an upload that received nothing for so long was abandoned
DAY_S = 86400
log = logging.getLogger("serve_app")


def sweep(folder: Path, keep_days: float) -> None:
    """Delete jobs that ended more than ``keep_days`` ago, zips of ended jobs, and abandoned drafts.

    One process sweeps at a time, the others return at once. A file that cannot be deleted is left to the next sweep.

    Raises:
        OSError: The folder cannot be listed.
    """
    if not folder.is_dir():
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder / ".sweep.lock"))
        except BlockingIOError:
            return
        except OSError as error:  # a full disk: the sweep makes room
            log.warning("jobs: sweeping without a lock: %s", error)
        for name in sorted(os.listdir(folder)):
            try:
                _sweep_one(folder / name, keep_days)
            except (OSError, UnknownJobError) as error:  # such as a draft that became a job a moment ago
                log.info("jobs: %s stays until the next sweep: %s", name, error)


def delete(folder: Path) -> None:
    """Delete a job's folder; by a rename first, so that no reader meets a job that is half deleted.

    Raises:
        FileNotFoundError: Another process has deleted it.
    """
    deleted = folder.with_name(f"{DELETED}{uuid.uuid4().hex}")
    folder.rename(deleted)
    shutil.rmtree(deleted, ignore_errors=True)


def _sweep_one(path: Path, keep_days: float) -> None:
    now = time.time()
    if path.name.startswith(DELETED):  # the process that deleted it was killed
        shutil.rmtree(path, ignore_errors=True)
    elif path.name.startswith(DRAFT):
        if now - max(file.stat().st_mtime for file in (path, *path.iterdir())) > MAX_DRAFT_AGE_S:
            delete(path)
    elif ID.fullmatch(path.name):
        if outcome := read_outcome(path):
            (path / UPLOAD).unlink(missing_ok=True)
        if not (path / REQUEST).exists():
            since = path  # the request is lost
        elif outcome:
            since = path / OUTCOMES[outcome]
        elif read_request(path)[1]:  # it cannot be read; its files stay for an upgrade that can read it
            since = path / REQUEST
        else:
            return
        if now - since.stat().st_mtime > keep_days * DAY_S:
            delete(path)
