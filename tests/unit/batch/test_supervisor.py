"""The supervisor runs every open job, retries crashes, and records why a job failed; its command is replaced here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.batch.job_store import JobStore
from serve_app.batch.predict import ExitCode
from serve_app.batch.supervisor import Supervisor
from tests.support.jobs import SUCCEED, run_jobs, submit_job


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs")


@pytest.fixture
def submit(store: JobStore, tmp_path: Path) -> Callable[[], str]:
    """Submits a job for an empty folder."""
    (tmp_path / "empty").mkdir()
    return lambda: submit_job(store, str(tmp_path / "empty"))


def test_real_command_reports_why_a_job_failed(store: JobStore, submit: Callable[[], str], tmp_path: Path) -> None:
    """`serve-app predict` refuses an empty folder, and its sentence becomes the job's error."""
    job = submit()
    Supervisor(store, workers=1, poll_s=0.01).run_open_jobs()
    state = store.state(job)
    assert (state.status, state.error) == ("failed", f"{tmp_path}/empty holds no files")


def test_jobs_run_in_order_of_submission(store: JobStore, submit: Callable[[], str]) -> None:
    """Each job runs once, the oldest first."""
    jobs = [submit() for _ in range(3)]
    assert run_jobs(store, SUCCEED).jobs == jobs
    assert {state.status for state in store.jobs()} == {"succeeded"}


def test_crashed_command_is_started_three_times(store: JobStore, submit: Callable[[], str]) -> None:
    """After the third crash the job fails with the command's last error."""
    job = submit()
    program = "import sys; print('error: crash', sys.argv[2], file=sys.stderr); sys.exit(1)"
    assert run_jobs(store, program).jobs == [job] * 3
    assert (store.state(job).status, store.state(job).error) == ("failed", "crash 3")


def test_crash_without_a_message_names_the_exit_code(store: JobStore, submit: Callable[[], str]) -> None:
    """A killed command leaves no error line; the job's error then names the exit code."""
    job = submit()
    run_jobs(store, "import os; os.kill(os.getpid(), 9)")
    assert store.state(job).error == "the job's process ended with code -9"


def test_command_that_succeeds_after_a_crash_completes_the_job(store: JobStore, submit: Callable[[], str]) -> None:
    """A crash alone does not fail a job."""
    job = submit()
    command = run_jobs(store, f"import sys\nif sys.argv[2] == '1': sys.exit(1)\n{SUCCEED}")
    assert (len(command.jobs), store.state(job).status) == (2, "succeeded")


def test_busy_results_are_tried_until_they_are_free(store: JobStore, submit: Callable[[], str]) -> None:
    """While another run writes to the results, attempts do not count as crashes."""
    job = submit()
    command = run_jobs(store, f"import sys\nif int(sys.argv[2]) < 6: sys.exit({ExitCode.BUSY})\n{SUCCEED}")
    assert (len(command.jobs), store.state(job).status) == (6, "succeeded")


def test_cancelled_job_terminates_its_command(store: JobStore, submit: Callable[[], str], tmp_path: Path) -> None:
    """A command that would run forever ends when its job is cancelled, and is not started again."""
    job = submit()
    cancelled = store.folder / job / "cancelled"
    program = f"import pathlib, signal; pathlib.Path({str(cancelled)!r}).touch(); signal.pause()"
    assert run_jobs(store, program).jobs == [job]
    assert store.state(job).status == "cancelled"
