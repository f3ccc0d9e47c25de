"""Works off the folder of jobs, one at a time: starts the command, ends it when asked, says why it failed."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time

from serve_app.batch.job_store import Store
from serve_app.errors import UnknownJobError
from serve_app.paths import ROOT
from serve_app.scheduling import idle_python

BUSY = 75  # exit code of the command when another run is at work on the same results
CANNOT = 2  # exit code when trying again would not help
TRIES = 3
LOOK_S = 0.5
BUSY_S = 5
STOP_S = 20
log = logging.getLogger("serve_app")


class Supervisor:
    """A thread that does jobs as long as there are any, then sleeps.

    It may be killed at any time: what is done is in the job's folder, and the next one goes on there.
    """

    def __init__(self, store: Store, address: str | None, workers: int | None) -> None:
        """Start.

        Args:
            store: The jobs.
            address: Of the Ray cluster that they run on; none is a Ray of their own.
            workers: Workers of a job.
        """
        self.store, self.workers = store, workers
        self._address = address
        self._wake, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def stop(self) -> None:
        """End the command that runs, if one does; its job stays open."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            try:
                while not self._stopping and (jobs := self.store.open_jobs()):
                    self._do(jobs[0])
            except Exception:  # a folder that is away for a while must not end this thread
                log.exception("jobs: looking again")
            self._wake.wait(60)
            self._wake.clear()

    def _do(self, job: str) -> None:
        """Run the command until the job has ended."""
        tries = 0
        while self._open(job):
            if self._stopping:
                return
            code, said = self._command(job)
            if code == BUSY:  # the command of a supervisor that was killed goes on
                time.sleep(BUSY_S)
                continue
            tries += 1
            if code == CANNOT or (code and tries == TRIES and self._open(job)):
                self.store.fail(job, said.removeprefix("error: ") or f"the job's process ended with code {code}")
            elif code:
                log.warning("job %s: try %d ended with code %d: %s", job, tries, code, said)
        self.store.drop_upload(job)

    def _open(self, job: str) -> bool:
        try:
            return self.store.state(job).status in ("queued", "running")
        except UnknownJobError:
            return False

    def _command(self, job: str) -> tuple[int, str]:
        """Run it once; gives its exit code and its last words."""
        asked, log_file = self.store.request(job), self.store.progress(job).with_name("log.txt")
        command = [*idle_python(), "-m", "serve_app.batch.predict"]
        command += [self.store.input(job), str(self.store.results(job)), "--background"]
        command += ["--weights", asked.weights.model_dump_json(), "--engine", asked.engine.model_dump_json()]
        command += ["--limits", asked.limits.model_dump_json()]
        command += ["--top-k", str(asked.top_k), "--progress", str(self.store.progress(job))]
        command += ["--address", self._address] if self._address else []
        command += ["--workers", str(self.workers)] if self.workers else []
        with log_file.open("w+") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=output, env=_environment())
            while process.poll() is None:
                if self._stopping or not self._open(job):
                    process.terminate()
                    try:
                        process.wait(STOP_S)
                    except subprocess.TimeoutExpired:
                        process.kill()
                self._wait()
            output.seek(0)
            lines = [line for line in output.read().splitlines() if line.startswith("error: ")]
        return process.returncode, lines[-1] if lines else ""

    def _wait(self) -> None:
        self._wake.wait(LOOK_S)
        self._wake.clear()


def _environment() -> dict[str, str]:
    """Ours, without what Ray tells a worker about itself."""
    mine = ("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_ADDRESS", "CUDA_VISIBLE_DEVICES")
    return {name: value for name, value in os.environ.items() if name not in mine} | {"PYTHONPATH": str(ROOT)}
