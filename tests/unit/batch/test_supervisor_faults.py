"""The supervisor through outages, kills, full disks and its own errors: no job is lost that another attempt can end."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serve_app.batch.job_records import JobAttempts
from serve_app.batch.job_store import JobStore
from serve_app.batch.predict import ExitCode
from serve_app.batch.supervisor import MAX_ATTEMPTS, MAX_OUTAGES, MAX_RETRY_S, Supervisor
from serve_app.cli.main import app
from tests.support.clock import FakeClock
from tests.support.faults import full_disk
from tests.support.jobs import SUCCEED, FakeCommand, run_jobs, submit_job
from tests.support.paths import ROOT


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs")


def test_outage_is_waited_for_and_keeps_the_upload(store: JobStore) -> None:
    """A full disk or a source that is away fails no job, however many attempts that takes; the zip stays until then."""
    job = submit_job(store)
    program = (
        f"import sys\nfolder = __import__('pathlib').Path(sys.argv[1]).parent\n"
        f"assert (folder / 'upload.zip').exists()\nif int(sys.argv[2]) < 9: sys.exit({ExitCode.UNAVAILABLE})\n{SUCCEED}"
    )
    command = FakeCommand(program)
    Supervisor(store, command=command, poll_s=0.01, retry_s=1e-4).run_open_jobs()
    assert (len(command.jobs), store.state(job).status) == (9, "succeeded")
    assert store.attempts(job) == JobAttempts(started=1, outages=8)
    assert not (store.folder / job / "upload.zip").exists()


def test_outage_without_end_fails_the_job(store: JobStore) -> None:
    """Its error is what was away."""
    job = submit_job(store)
    program = f"import sys; print('error: the disk is full', file=sys.stderr); sys.exit({ExitCode.UNAVAILABLE})"
    command = FakeCommand(program)
    Supervisor(store, command=command, poll_s=0.01, retry_s=1e-9).run_open_jobs()
    assert len(command.jobs) == MAX_OUTAGES
    assert (store.state(job).status, store.state(job).error) == ("failed", "the disk is full")


def test_waits_grow_up_to_a_limit(store: JobStore) -> None:
    """From a second to ten minutes, about two hours in all."""
    supervisor = Supervisor(store)
    waits = [supervisor._backoff_s(failures) for failures in range(1, MAX_OUTAGES)]
    assert waits[:4] == [1, 2, 4, 8]
    assert max(waits) == waits[-1] == MAX_RETRY_S
    assert 1.5 < sum(waits) / 3600 < 3


def test_job_that_waits_blocks_no_other(store: JobStore) -> None:
    """The oldest job is away for an hour; the others run meanwhile, each once."""
    waiting, *others = [submit_job(store) for _ in range(3)]
    clock = FakeClock()

    class Command(FakeCommand):
        def __call__(self, store: JobStore, job: str, address: str | None, workers: int | None) -> list[str]:
            code = ExitCode.UNAVAILABLE if job == waiting and clock.now == 0 else ExitCode.OK
            self.program = f"raise SystemExit({code})" if code else SUCCEED
            if job == others[-1]:
                clock.advance(3600)
            return super().__call__(store, job, address, workers)

    command = Command("")
    Supervisor(store, command=command, poll_s=0.01, retry_s=3600, clock=clock).run_open_jobs()
    assert command.jobs == [waiting, *others, waiting]
    assert {state.status for state in store.jobs()} == {"succeeded"}


def test_attempts_are_on_disk_before_they_start(store: JobStore) -> None:
    """The command itself finds its own attempt in the folder."""
    job = submit_job(store)
    program = (
        "import json, pathlib, sys\n"
        "attempts = json.loads((pathlib.Path(sys.argv[1]).parent / 'attempts.json').read_text())\n"
        f"if attempts['started'] != int(sys.argv[2]): sys.exit({ExitCode.INVALID})\n"
        "if sys.argv[2] == '1': sys.exit(1)\n" + SUCCEED
    )
    run_jobs(store, program)
    assert store.state(job).status == "succeeded"


DIE = """
import os, sys, time
from pathlib import Path
from serve_app.batch.job_store import JobStore
from serve_app.batch.supervisor import Supervisor

def command(store, job, address, workers):
    with (store.folder.parent / "started").open("a") as file:
        file.write("x")
    return [sys.executable, "-c", f"import os; os.kill({os.getpid()}, 9)"]

Supervisor(JobStore(Path(sys.argv[1])), command=command, poll_s=0.01).run_open_jobs()
"""


def test_job_that_takes_the_machine_down_is_given_up(store: JobStore, tmp_path: Path) -> None:
    """The supervisor is killed in every attempt, as by a node that runs out of memory; the job fails, the next runs."""
    deadly = submit_job(store)
    for _ in range(MAX_ATTEMPTS):
        command = [sys.executable, "-c", DIE, str(store.folder)]
        assert subprocess.run(command, cwd=ROOT, timeout=300).returncode == -signal.SIGKILL
        assert store.state(deadly).status == "queued"
        assert (store.folder / deadly / "upload.zip").exists()
    other = submit_job(store)
    assert run_jobs(store, SUCCEED).jobs == [other]
    assert (tmp_path / "started").read_text() == "x" * MAX_ATTEMPTS
    state = store.state(deadly)
    assert state.status == "failed"
    assert state.error == (
        "the job was started 3 times and this machine or service stopped each time; submit it again, in smaller parts"
    )


def test_clean_stop_is_no_failed_attempt(store: JobStore) -> None:
    """A service that is stopped ten times in the middle of a job goes on with it."""
    job = submit_job(store)
    for _ in range(10):
        store.record_attempts(job, JobAttempts(started=store.attempts(job).started + 1))
        store.stopped_path(job).touch()  # by the command, on SIGTERM; the supervisor was stopped too
    assert store.attempts(job).started == 0
    run_jobs(store, SUCCEED)
    assert store.state(job).status == "succeeded"
    assert not store.stopped_path(job).exists()


def test_stopped_command_of_a_running_supervisor_is_started_again(store: JobStore) -> None:
    """Someone ends the command by SIGTERM, before or after it handles the signal; neither counts."""
    job = submit_job(store)
    program = (
        "import os, sys\nattempt = int(sys.argv[2])\n"
        f"if attempt < 4: sys.exit({ExitCode.INTERRUPTED})\n"
        "if attempt < 8: os.kill(os.getpid(), 15)\n" + SUCCEED
    )
    command = run_jobs(store, program)
    assert (len(command.jobs), store.state(job).status) == (8, "succeeded")
    assert store.attempts(job).started == 1


def test_full_disk_on_the_supervisors_side_waits(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the attempt cannot be recorded it is not made; the job stays, with its zip."""
    job = submit_job(store)
    record, calls = store.record_attempts, itertools.count()

    def record_later(job: str, attempts: JobAttempts) -> None:
        if next(calls) < 5:
            full_disk()
        record(job, attempts)

    monkeypatch.setattr(store, "record_attempts", record_later)
    command = run_jobs(store, SUCCEED)
    assert (command.jobs, store.state(job).status) == ([job], "succeeded")


def test_command_that_cannot_be_started_is_no_crash(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory or process ids the operating system refuses; that says nothing about the job."""
    job, popen, calls = submit_job(store), subprocess.Popen, itertools.count()

    def start_later(*arguments: Any, **options: Any) -> Any:
        if next(calls) < 5:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return popen(*arguments, **options)

    monkeypatch.setattr("serve_app.batch.supervisor.subprocess.Popen", start_later)
    run_jobs(store, SUCCEED)
    assert (store.state(job).status, store.attempts(job).started) == ("succeeded", 1)


def test_error_of_one_job_stops_no_other(store: JobStore) -> None:
    """Whatever the supervisor raises for a job, it goes on; a job that always does so ends after its attempts."""
    broken, other = submit_job(store), submit_job(store)

    class Command(FakeCommand):
        def __call__(self, store: JobStore, job: str, address: str | None, workers: int | None) -> list[str]:
            command = super().__call__(store, job, address, workers)
            if job == broken:
                raise RuntimeError("a bug")
            return command

    command = Command(SUCCEED)
    Supervisor(store, command=command, poll_s=0.01, retry_s=0.01).run_open_jobs()
    assert command.jobs.count(other) == 1
    assert command.jobs.count(broken) == MAX_ATTEMPTS
    assert (store.state(broken).status, store.state(other).status) == ("failed", "succeeded")


def test_damaged_job_is_passed_by(store: JobStore) -> None:
    damaged, other = submit_job(store), submit_job(store)
    (store.folder / damaged / "job.json").write_bytes(b"")
    assert run_jobs(store, SUCCEED).jobs == [other]


@pytest.mark.parametrize("error", [OSError(116, "Stale file handle"), RuntimeError("a bug")])
def test_error_in_the_loop_leaves_no_command_behind(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A network folder that is gone for a moment leaves the command running; any other error ends it."""
    job = submit_job(store)
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remember(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    state, calls = store.state, itertools.count()

    def fail_once(job: str, caller: str | None = None) -> Any:
        if started and next(calls) == 0:
            raise error
        return state(job, caller)

    monkeypatch.setattr(store, "state", fail_once)
    monkeypatch.setattr("serve_app.batch.supervisor.subprocess.Popen", remember)
    run_jobs(store, f"import sys, time\nif sys.argv[2] == '1': time.sleep(0.3)\n{SUCCEED}")
    assert store.state(job).status == "succeeded"
    assert len(started) == (1 if isinstance(error, OSError) else 2)
    assert all(process.poll() is not None for process in started)


def test_success_without_a_summary_is_a_crash(store: JobStore) -> None:
    """It ended the loop of attempts never before."""
    job = submit_job(store)
    assert run_jobs(store, "pass").jobs == [job] * 3
    assert store.state(job).error == "the job's process wrote no summary"


def test_long_or_binary_messages(store: JobStore) -> None:
    """The last error is found in any amount of output, in any encoding."""
    job = submit_job(store)
    program = (
        "import sys\nfor _ in range(200): sys.stderr.buffer.write(b'\\xff' * 10_000 + b'\\n')\n"
        f"print('error: wrong', file=sys.stderr); sys.exit({ExitCode.INVALID})"
    )
    run_jobs(store, program)
    assert store.state(job).error == "wrong"


def test_weights_that_are_away_are_an_outage(store: JobStore, tmp_path: Path) -> None:
    """The real command: weights that cannot be read now get exit code 69, wrong ones 2."""
    missing = {"source": str(tmp_path / "none.safetensors"), "sha256": "0" * 64}
    for weights, code in ((missing, ExitCode.UNAVAILABLE), ({"source": "resnet"}, ExitCode.INVALID)):
        arguments = ["predict", str(tmp_path), str(tmp_path / "out"), "--weights", json.dumps(weights)]
        assert CliRunner().invoke(app, arguments).exit_code == code
