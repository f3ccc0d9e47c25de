"""Run jobs of the job store one at a time: start `serve-app predict`, stop it for a cancelled job, record failures."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress

from serve_app.batch.job_store import JobStore
from serve_app.batch.predict import ExitCode
from serve_app.errors import UnknownJobError
from serve_app.paths import ROOT
from serve_app.scheduling import idle_python

MAX_ATTEMPTS = 3
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
    command += ["--progress", str(store.progress_path(job)), "--background"]
    command += ["--address", address] if address else []
    command += ["--workers", str(workers)] if workers else []
    return command


class Supervisor:
    """Runs the open jobs of a store, oldest first.

    It may be killed at any time: a job's state is in its folder, and the next supervisor goes on from there.

    Args:
        store: The jobs.
        address: Address of the Ray cluster for the jobs; None starts a local Ray per job.
        workers: Workers per job; None is one per CPU.
        command: Returns the command line of a job.
        poll_s: Seconds between two looks at a running job.
        busy_retry_s: Seconds until the next attempt while another run writes to the job's results.
    """

    def __init__(
        self,
        store: JobStore,
        address: str | None = None,
        workers: int | None = None,
        command: Callable[[JobStore, str, str | None, int | None], list[str]] = predict_command,
        poll_s: float = 0.5,
        busy_retry_s: float = 5,
    ) -> None:
        self.workers = workers
        self._store, self._address, self._command = store, address, command
        self._poll_s, self._busy_retry_s = poll_s, busy_retry_s
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
            self._run_job(jobs[0])

    def _run_forever(self) -> None:
        while True:
            try:
                self.run_open_jobs()
            except Exception:  # such as a network folder that is gone for a while; the thread must survive it
                log.exception("jobs: trying again within %d s", STORE_RETRY_S)
            self._sleep(STORE_RETRY_S)

    def _run_job(self, job: str) -> None:
        """Run a job's command until the job has ended."""
        attempts = 0
        while self._is_open(job):
            code, error = self._run_command(job)
            if code == ExitCode.BUSY:  # the command of a killed supervisor still runs
                self._sleep(self._busy_retry_s)
                continue
            attempts += 1
            if code == ExitCode.INVALID or (code and attempts == MAX_ATTEMPTS and self._is_open(job)):
                self._store.fail(job, error or f"the job's process ended with code {code}")
            elif code:
                log.warning("job %s: attempt %d ended with code %d: %s", job, attempts, code, error)
        self._store.drop_upload(job)

    def _run_command(self, job: str) -> tuple[int, str]:
        """Run the command once, and terminate it when the job is cancelled; return exit code and error message."""
        command = self._command(self._store, job, self._address, self.workers)
        inherited = {name: value for name, value in os.environ.items() if name not in RAY_WORKER_VARIABLES}
        environment = inherited | {"PYTHONPATH": str(ROOT)}
        with self._store.progress_path(job).with_name("log.txt").open("w+") as log_file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log_file, env=environment)
            while process.poll() is None:
                if not self._is_open(job):
                    process.terminate()
                    try:
                        process.wait(TERMINATE_TIMEOUT_S)
                    except subprocess.TimeoutExpired:
                        process.kill()
                self._sleep(self._poll_s)
            log_file.seek(0)
            errors = [line for line in log_file.read().splitlines() if line.startswith("error: ")]
        return process.returncode, errors[-1].removeprefix("error: ") if errors else ""

    def _is_open(self, job: str) -> bool:
        with suppress(UnknownJobError):
            return self._store.state(job).status in ("queued", "running")
        return False

    def _sleep(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()
