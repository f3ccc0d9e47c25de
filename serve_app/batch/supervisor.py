"""Run jobs of the job store one at a time: start `serve-app predict`, stop it for a cancelled job, record failures."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from serve_app.batch.job_records import OPEN
from serve_app.batch.job_store import JobStore
from serve_app.batch.predict import ExitCode
from serve_app.errors import UnknownJobError
from serve_app.paths import ROOT, python_path
from serve_app.scheduling import idle_python

MAX_ATTEMPTS = 3  # that crash, or during which this machine goes down
MAX_OUTAGES = 20  # attempts that meet an error that passes; about two hours with the waits between them
MAX_RETRY_S = 600
MAX_LOG_BYTES = 64 * 1024  # end of a command's messages in which its error is looked for
STORE_RETRY_S = 60
TERMINATE_TIMEOUT_S = 20
# Ray sets these for its workers; the command is a driver of its own.
RAY_WORKER_VARIABLES = ("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_ADDRESS", "CUDA_VISIBLE_DEVICES")
log = logging.getLogger("serve_app")


def predict_command(store: JobStore, job: str, address: str | None, workers: int | None) -> list[str]:
    """Return the command line that runs a job in SCHED_IDLE."""
    request = store.request(job)
    command = [*idle_python(), "-m", "serve_app", "predict", store.input_path(job), str(store.results_path(job))]
    command += ["--weights", request.weights.model_dump_json(), "--engine", request.engine.model_dump_json()]
    command += ["--limits", request.limits.model_dump_json(), "--top-k", str(request.top_k)]
    command += ["--progress", str(store.progress_path(job)), "--stop-file", str(store.stopped_path(job))]
    command += ["--background", *(["--embed"] if request.embed else [])]
    command += ["--head", str(store.head_path(job, request.head))] if request.head else []
    command += ["--address", address] if address else []
    command += ["--workers", str(workers)] if workers else []
    return command


class Supervisor:
    """Runs the open jobs of a store, oldest first.

    It may be killed at any time: a job's state is in its folder, and the next supervisor goes on from there. A job
    whose attempt fails waits for its next attempt, longer each time, while other jobs run. The number of attempts is
    on disk before each attempt, so a job that takes the machine down each time fails after MAX_ATTEMPTS.

    Args:
        store: The jobs.
        address: Address of the Ray cluster for the jobs; None starts a local Ray per job.
        workers: Workers per job; None is one per CPU.
        command: Returns the command line of a job.
        poll_s: Seconds between two looks at a running job.
        busy_retry_s: Seconds until the next attempt while another run writes to the job's results.
        retry_s: Seconds until the second attempt; the wait doubles with each attempt, up to MAX_RETRY_S.
        clock: Returns monotonic time in seconds.
    """

    def __init__(
        self,
        store: JobStore,
        address: str | None = None,
        workers: int | None = None,
        command: Callable[[JobStore, str, str | None, int | None], list[str]] = predict_command,
        poll_s: float = 0.5,
        busy_retry_s: float = 5,
        retry_s: float = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workers = workers
        self._store, self._address, self._command = store, address, command
        self._poll_s, self._busy_retry_s, self._retry_s, self._clock = poll_s, busy_retry_s, retry_s, clock
        self._next_attempt: dict[str, float] = {}  # time of the clock, by job
        self._faults: dict[str, int] = {}  # errors of this supervisor in a row, by job
        self._wake = threading.Event()

    def start(self) -> None:
        """Run jobs in a background thread for as long as this process lives."""
        threading.Thread(target=self._run_forever, name="jobs", daemon=True).start()

    def wake(self) -> None:
        """Make the thread look at the store now: a job was submitted or cancelled."""
        self._wake.set()

    def run_open_jobs(self) -> None:
        """Run jobs until none is open."""
        while jobs := self._store.open_jobs():
            now = self._clock()
            self._next_attempt = {job: self._next_attempt.get(job, now) for job in jobs}
            waits = {job: at - now for job, at in self._next_attempt.items()}
            due = [job for job, wait in waits.items() if wait <= 0]
            if due:
                self._run_job(due[0])
            else:
                self._sleep(min(waits.values()))

    def _run_forever(self) -> None:
        while True:
            try:
                self.run_open_jobs()
            except Exception:  # such as a network folder that is gone for a while; the thread must survive it
                log.exception("jobs: trying again within %d s", STORE_RETRY_S)
            self._sleep(STORE_RETRY_S)

    def _run_job(self, job: str) -> None:
        """Make one attempt to run a job, and set the time of the next one."""
        try:
            wait_s = self._attempt(job)
            self._faults.pop(job, None)
        except UnknownJobError:  # deleted meanwhile
            return
        except Exception:  # such as a full disk; whatever it is, the other jobs go on
            faults = self._faults[job] = self._faults.get(job, 0) + 1
            wait_s = self._backoff_s(faults)
            log.exception("job %s: trying again in %.0f s", job, wait_s)
        self._next_attempt[job] = self._clock() + wait_s

    def _attempt(self, job: str) -> float:
        """Run a job's command once; return the seconds until the next attempt, which is made if the job is open."""
        before = self._store.attempts(job)
        if before.started >= MAX_ATTEMPTS:
            stopped = f"the job was started {before.started} times and this machine or service stopped each time"
            self._end(job, f"{stopped}; submit it again, in smaller parts")
            return 0
        counted = before.model_copy(update={"started": before.started + 1})
        self._store.record_attempts(job, counted)
        try:
            code, error = self._run_command(job)
        except OSError:  # such as a full disk: the job is not at fault
            self._store.record_attempts(job, before)
            raise
        if not self._is_open(job):
            self._store.drop_upload(job)
            return 0
        error = error or (f"the job's process ended with code {code}" if code else "the job's process wrote no summary")
        if code in (ExitCode.BUSY, ExitCode.INTERRUPTED, -signal.SIGTERM):
            self._store.record_attempts(job, before)
            return self._busy_retry_s  # the command of a killed supervisor still runs, or this service is stopping
        if code == ExitCode.UNAVAILABLE:
            counted = before.model_copy(update={"outages": before.outages + 1})
            self._store.record_attempts(job, counted)
            is_last, wait_s = counted.outages >= MAX_OUTAGES, self._backoff_s(counted.outages)
        else:
            is_last, wait_s = counted.started >= MAX_ATTEMPTS, self._backoff_s(counted.started)
        if is_last or code == ExitCode.INVALID:
            self._end(job, error)
            return 0
        log.warning("job %s: ended with code %d, trying again in %.0f s: %s", job, code, wait_s, error)
        return wait_s

    def _end(self, job: str, error: str) -> None:
        """Record why a job failed, and delete its zip."""
        self._store.fail(job, error)
        self._store.drop_upload(job)

    def _backoff_s(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        return min(MAX_RETRY_S, self._retry_s * 2.0 ** (failures - 1))

    def _run_command(self, job: str) -> tuple[int, str]:
        """Run the command once, and terminate it when the job is cancelled; return exit code and error message."""
        command = self._command(self._store, job, self._address, self.workers)
        inherited = {name: value for name, value in os.environ.items() if name not in RAY_WORKER_VARIABLES}
        environment = inherited | {"PYTHONPATH": python_path()}
        with self._store.progress_path(job).with_name("log.txt").open("w+b") as log_file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log_file, env=environment)
            try:
                while process.poll() is None:
                    if self._is_cancelled(job):
                        _terminate(process)
                    self._sleep(self._poll_s)
            finally:
                _terminate(process)  # an error here must not leave a command that nobody watches
            log_file.seek(max(0, log_file.seek(0, os.SEEK_END) - MAX_LOG_BYTES))
            lines = log_file.read().decode(errors="replace").splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return process.returncode, errors[-1] if errors else ""

    def _is_cancelled(self, job: str) -> bool:
        try:
            return not self._is_open(job)
        except OSError:  # the folder is away for a moment; the command goes on
            return False

    def _is_open(self, job: str) -> bool:
        with suppress(UnknownJobError):
            return self._store.state(job).status in OPEN
        return False

    def _sleep(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """End a process: SIGTERM, and SIGKILL after TERMINATE_TIMEOUT_S."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(TERMINATE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
